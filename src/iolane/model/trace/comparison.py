"""What two values of a register, or two pieces of memory, have different, by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from iolane.model.trace.recorded import RecordedEvent
from iolane.model.trace.recording import MemoryField
from iolane.model.trace.target import Part, Target

_INDEX = re.compile(r"\[\d+\]$")


class Difference(NamedTuple):
    """A place in which the model differs."""

    line: int
    """Of the recording."""
    place: str
    """`bar0.CAP.TO`, `bar0.VS`, `interrupt.MSIX[1]`, `memory.cq1.STATUS`."""
    recorded: str
    replayed: str

    @property
    def names(self) -> tuple[str, ...]:
        """The place, and what it is a part of: `bar0.CAP` covers its fields."""
        return self.place, self.place.rpartition(".")[0] or self.place

    def __str__(self) -> str:
        return f"line {self.line}: {self.place}: recorded {self.recorded}, the model has {self.replayed}"


def compare_registers(line: int, target: Target, recorded: int, replayed: int) -> Iterator[Difference]:
    """By field; what is in no field by register; what is in no register by offset."""
    if not target.parts:
        yield Difference(line, target.name, f"{recorded:#x}", f"{replayed:#x}")
        return
    rest = recorded ^ replayed
    for part in target.parts:
        yield from _compare_part(line, part, part.take(recorded), part.take(replayed))
        rest &= ~(part.lanes >> part.shift if part.shift >= 0 else part.lanes << -part.shift)
    if rest:
        place = f"{target.region.name}+{target.offset:#x}"
        yield Difference(line, place, f"{recorded:#x}", f"{replayed:#x}")


def _compare_part(line: int, part: Part, recorded: int, replayed: int) -> Iterator[Difference]:
    changed = recorded ^ replayed
    for name, field in part.type.field_table.items():
        if changed & field.mask:
            values = [field.describe((value & field.mask) >> field.lsb) for value in (recorded, replayed)]
            yield Difference(line, f"{part.name}.{name}", *values)
            changed &= ~field.mask
    if changed:
        yield Difference(line, part.name, f"{recorded:#x}", f"{replayed:#x}")


def compare_memory(event: RecordedEvent, recorded: bytes, replayed: bytes) -> Iterator[Difference]:
    """By field of each record, records being found by their key; without fields byte by byte."""
    place = f"memory.{_INDEX.sub('', event.name)}"
    if not event.fields:
        if recorded != replayed:
            first = next(n for n, (a, b) in enumerate(zip(recorded, replayed, strict=True)) if a != b)
            yield Difference(event.line, place, recorded[first:][:16].hex(), replayed[first:][:16].hex())
        return
    stride = event.stride or len(recorded)
    ours = [replayed[start : start + stride] for start in range(0, len(replayed), stride)]
    for start in range(0, len(recorded), stride):
        theirs = recorded[start : start + stride]
        match = _matching(event, theirs, ours) if event.key else ours[start // stride]
        if match is None:
            key = ", ".join(f"{name} {_value(event, name, theirs)}" for name in event.key)
            yield Difference(event.line, place, key, "nothing of the kind")
            continue
        for item in event.parts:
            values = _take(item, theirs), _take(item, match)
            if values[0] != values[1]:
                yield Difference(event.line, f"{place}.{item.name}", f"{values[0]:#x}", f"{values[1]:#x}")


def _matching(event: RecordedEvent, record: bytes, records: list[bytes]) -> bytes | None:
    """The record of the same key; it is taken out."""
    wanted = [_value(event, name, record) for name in event.key]
    for place, other in enumerate(records):
        if [_value(event, name, other) for name in event.key] == wanted:
            return records.pop(place)
    return None


def _value(event: RecordedEvent, name: str, record: bytes) -> int:
    return next((_take(item, record) for item in event.parts if item.name == name), 0)


def _take(item: MemoryField, record: bytes) -> int:
    value = int.from_bytes(record[item.offset : item.offset + item.size], "little") & item.mask
    return value >> ((item.mask & -item.mask).bit_length() - 1) if item.mask else 0
