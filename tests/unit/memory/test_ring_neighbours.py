"""Large transfers that go on where the one before ends: they may be held back for more, but not for long."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.memory.ring_rig import DIRECT, IN, OUT, RingRig, path_of

LARGE = 128 << 10
COUNT = 24
"""Of them are more than the disk must have to do, and more than are held back."""
CONTENT = random.Random(11).randbytes(COUNT * LARGE)


@pytest.fixture
def direct(tmp_path: Path) -> Iterator[int]:
    image = tmp_path / "image"
    image.write_bytes(CONTENT)
    try:
        fd = os.open(image, os.O_RDWR | os.O_DIRECT)
    except OSError:
        pytest.skip("the file system has no O_DIRECT")
    yield fd
    os.close(fd)


def sector(number: int) -> int:
    return number * LARGE // 512


@pytest.mark.parametrize("one_by_one", [False, True])
def test_reads(direct: int, one_by_one: bool) -> None:
    with RingRig(path_of(direct, len(CONTENT), DIRECT), size=128) as rig:
        heads = []
        for number in range(COUNT):
            heads.append(rig.send(IN, sector(number), LARGE))
            if one_by_one:
                rig.driver.kick()
        found = {used.head: used.data for used in rig.wait(COUNT)}
        assert rig.events == []
        for number, head in enumerate(heads):
            assert found[head] == CONTENT[number * LARGE : (number + 1) * LARGE] + b"\0"


@pytest.mark.parametrize("step", [1, 2, -1], ids=["neighbours", "gaps", "backwards"])
def test_writes(direct: int, tmp_path: Path, step: int) -> None:
    pieces = {number: random.Random(number).randbytes(LARGE) for number in range(COUNT)}
    order = sorted(pieces, key=lambda number: number * step % (COUNT + 1) if step != -1 else -number)
    with RingRig(path_of(direct, len(CONTENT), DIRECT), size=128) as rig:
        for number in order:
            rig.send(OUT, sector(number), pieces[number])
            rig.driver.kick()
        assert {used.data for used in rig.wait(COUNT)} == {b"\0"}
        assert rig.events == []
    assert (tmp_path / "image").read_bytes() == b"".join(pieces.values())


def test_a_stop_holds_nothing_back(direct: int) -> None:
    with RingRig(path_of(direct, len(CONTENT), DIRECT), size=128) as rig:
        for number in range(COUNT):
            rig.send(IN, sector(number), LARGE)
            rig.driver.kick()
            if number % 5 == 4:
                rig.stop()
                rig.start()
        assert len(rig.wait(COUNT)) == COUNT
