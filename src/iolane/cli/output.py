"""Printing: JSON documents, aligned tables, progress. Tables and JSON go to stdout, progress to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def print_json(document: Any, *, indent: int = 2) -> None:
    """One JSON document; `indent=0` on one line, for streams of them."""
    import msgspec

    encoded = msgspec.json.encode(document)
    print((msgspec.json.format(encoded, indent=indent) if indent else encoded).decode(), flush=True)


def print_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, numeric: Sequence[str] = ()
) -> None:
    """Columns wide enough for what is in them; those named in `numeric` aligned to the right."""
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = [
            cell.rjust(width) if name in numeric else cell.ljust(width)
            for cell, width, name in zip(line, widths, header, strict=True)
        ]
        print("  ".join(cells).rstrip())


def print_wrapped(text: str, *, indent: int) -> None:
    """As many lines as it takes on this terminal, all but the first further in."""
    import shutil
    import textwrap

    first = " " * indent
    width = max(shutil.get_terminal_size().columns, 40)
    filled = textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=first + "  ", break_on_hyphens=False
    )
    print(filled)


def progress(line: str) -> None:
    """One line about a step that takes a while."""
    print(line, file=sys.stderr, flush=True)


def quantity(number: float) -> str:
    """A count of bytes in the unit that suits it.

    >>> quantity(64 << 20)
    '64.0 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError
