"""Output that comes in pieces, and counts of KVM."""

from __future__ import annotations

from pathlib import Path

import pytest

from iolane.errors import IolaneError
from iolane.lab.exits import Exits, read_exits
from iolane.lab.lines import Lines


def test_lines_that_come_in_pieces_of_two_streams() -> None:
    objects: list[bytes] = []
    words: list[str] = []
    lines = Lines(objects.append, words.append)
    lines.take("out", b'{"a":')
    lines.take("err", b"work")
    lines.take("out", b' 1}\n{"b": 2}\n{"c"')
    lines.take("err", b"ing\n\nmore\n")
    assert objects == [b'{"a": 1}', b'{"b": 2}']
    assert words == ["working", "more"]


def counts(folder: Path, **values: int) -> None:
    folder.mkdir()
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n")


def test_exits_of_one_machine(tmp_path: Path) -> None:
    counts(tmp_path / "77-12", exits=1000, io_exits=300, halt_exits=40, mmio_exits=5)
    counts(tmp_path / "777-12", exits=1, io_exits=1, halt_exits=1, mmio_exits=1)
    before = read_exits(77, tmp_path)
    assert before == Exits(1000, 300, 40, 5)
    assert before.of_devices == 700
    assert Exits(1010, 301, 42, 5).since(before) == Exits(10, 1, 2, 0)
    with pytest.raises(IolaneError, match="tells nothing of a machine of process 7"):
        read_exits(7, tmp_path)
