"""`iolane bench block` without its peers: the C front end against our own back end, and the table."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from iolane.bench.block import (
    CASES,
    OURS,
    THREADS,
    URING,
    BlockBenchResult,
    CaseResult,
    Figures,
    Place,
    _summarize,
    to_markdown,
)
from iolane.bench.confidence import confidence_of_median
from iolane.bench.native import build
from iolane.carriers.vhost_user import VhostUserServer
from iolane.devices.virtio.block import Block
from iolane.engines.qemu.cache import Cache
from iolane.model.workers import Workers

SPAN = 1 << 20
MILLISECONDS = 200


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_front_end_loads_a_back_end(tmp_path: Path, case: object) -> None:
    """Each load: requests come back well, and writes reach the image."""
    client = build(("block_client",), Cache(tmp_path / "cache")) / "block_client"
    image = tmp_path / "image"
    image.write_bytes(bytes(SPAN))
    case = next(item for item in CASES if item is case)
    disk = Block(image, queues=2, queue_size=512)
    with Workers(1) as workers, VhostUserServer(disk, tmp_path / "s", workers=workers):
        words = (case.operation, case.order, case.size, case.depth, case.queues, MILLISECONDS, SPAN, 0)
        done = subprocess.run(
            [str(client), str(tmp_path / "s"), *map(str, words)], capture_output=True, text=True, timeout=30
        )
    disk.close()
    assert done.returncode == 0, done.stderr
    requests, wall, p50, p99, total = (int(word) for word in done.stdout.split())
    assert 0 < requests <= total
    assert wall == MILLISECONDS * 1_000_000
    assert p50 <= p99
    assert (image.read_bytes() != bytes(SPAN)) == (case.operation == "write")


def test_a_back_end_that_is_not_there(tmp_path: Path) -> None:
    client = build(("block_client",), Cache(tmp_path / "cache")) / "block_client"
    words = ("read", "random", "4096", "1", "1", "20", str(SPAN), "0")
    done = subprocess.run(
        [str(client), str(tmp_path / "s"), *words], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert os.strerror(2) in done.stderr


def result(case: int) -> CaseResult:
    fast, slow = Figures(4000, 1000, 2000, 500), Figures(1000, 4000, 8000, 2000)
    return _summarize(CASES[case], {OURS: [fast, fast], URING: [slow, slow], THREADS: [slow, slow]})


def test_ratios_are_ours_to_theirs() -> None:
    found = result(0)
    assert found.rate_ratio == {URING: 4.0, THREADS: 4.0}
    assert found.cpu_ratio == {URING: 0.25, THREADS: 0.25}


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(1, 0, 0), (5, 0, 4), (6, 0, 5), (8, 0, 7), (9, 1, 7), (12, 2, 9), (20, 5, 14)],
)
def test_confidence_of_a_median(count: int, low: int, high: int) -> None:
    """Ranks by the binomial distribution: of 9 values the second and the eighth."""
    assert confidence_of_median([float(number) for number in reversed(range(count))]) == (low, high)


def test_the_table() -> None:
    place = Place("tmpfs", False, tuple(result(number) for number in range(len(CASES))), {"fio mmap": 5000})
    found = BlockBenchResult("iolane bench block", "a machine", "11.1", 2, (place,))
    text = to_markdown(found)
    assert "| 4 KiB random read, depth 1 | 4.0 | 1.0 | 2.0 | 0.50 | 1.0 |" in text
    assert "| 4 KiB random read, depth 1, polled | 4.0 |" in text
    assert "fio mmap 5" in text
    assert "two queues is 1.00 of that with one" in text
    assert found.missed == []
    assert "Every target is met." in text


def test_a_missed_target_is_named() -> None:
    slow = Figures(3999, 1000, 2000, 1000)
    case = _summarize(CASES[1], {OURS: [slow], URING: [Figures(1000, 1, 1, 2000)], THREADS: [slow]})
    two = _summarize(CASES[7], {OURS: [Figures(1, 1, 1, 1151)], URING: [slow], THREADS: [slow]})
    assert (CASES[1].name, CASES[7].name) == (
        "4 KiB random read, depth 32",
        "4 KiB random read, depth 32, 2 queues",
    )
    found = BlockBenchResult("", "", "", 1, (Place("tmpfs", False, (case, two), {}),))
    assert found.missed == [
        "on tmpfs, 4 KiB random read, depth 32: rate 4.00 (4.00 to 4.00), should be at least 4",
        "on tmpfs, 4 KiB random read, depth 32: CPU 0.50, should be at most 0.3",
        "on tmpfs, CPU with two queues: 1.15, should be at most 1.15",
    ]
    assert "Targets that are missed:" in to_markdown(found)
