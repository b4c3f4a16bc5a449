"""Register declarations as a table for the docs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from iolane.model.registers.spec import Declaration


def markdown_table(registers: Sequence[Declaration[Any]]) -> str:
    """A Markdown table: a row a register, a row below it for each of its fields."""
    lines = [
        "| offset | register | bits | access | reset | meaning |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for spec in registers:
        lines += _rows(spec)
    return "\n".join(lines) + "\n"


def _rows(spec: Declaration[Any]) -> Iterator[str]:
    name, place = spec.name, f"{spec.offset:#x}"
    if spec.count > 1:
        name, place = f"{name}[{spec.count}]", f"{place} + {spec.stride:#x} i"
    yield f"| {place} | {name} | {8 * spec.width - 1}:0 | {spec.access} | {spec.reset:#x} | {spec.doc} |"
    for field in spec.type.field_table.values():
        kind = field.access or spec.access
        yield f"| | .{field.name} | {field.bits} | {kind} | {field.reset:#x} | {field.doc} |"
