"""Hostile rings of block requests against both data planes, from one seeded generator."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iolane.model.virtio import RingRejection, SplitRing, compiled_ring, split_ring
from iolane.model.virtio.chain import Chain
from iolane.testing.drivers.virtio_hostile import GUARD, PAGE, START, HostileDriver, HostileMemory
from tests.hostile.duel import NEVER, Duel, plant_always_indirect, plant_one_page_more, run_mains
from tests.hostile.ring_victims import SECTORS, CompiledVictim, Outcome, Victim

pytestmark = pytest.mark.hostile

PROCESSES = 2


class BlockDuel(Duel[Victim, CompiledVictim]):
    """Of disks."""

    def __init__(self, folder: Path, seed: int, *, thread: bool = False) -> None:
        oracle = Victim()
        compiled = CompiledVictim(folder / f"image{seed}", thread=thread)
        driver = HostileDriver(oracle.memory, seed, capacity=SECTORS)
        super().__init__(oracle, compiled, driver, seed, named=1 / 16)

    def reconcile(self, expected: Outcome) -> None:
        self.compiled.set_disk(expected.disk)


@pytest.fixture
def duel(memory_folder: Path) -> Iterator[BlockDuel]:
    duel = BlockDuel(memory_folder, 1)
    yield duel
    duel.close()


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """Where an image is read through a mapping: the shortest way to a wild copy."""
    folder = Path(f"/dev/shm/iolane-hostile-{os.getpid()}")
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    folder.mkdir(exist_ok=True)
    yield folder
    for left in folder.iterdir():
        left.unlink()
    folder.rmdir()


def campaign(folder: Path, rings: int) -> None:
    """So many rings, by a process for each processor."""
    share = -(-rings // PROCESSES)
    seeds = range(100, 100 + PROCESSES)
    counts = run_mains("tests.hostile.test_rings", [(folder, seed, share) for seed in seeds])
    found = sum(counts, Counter())
    assert found.total() >= rings
    few = {reason for reason in RingRejection if found[reason.name] < 100}
    assert few == NEVER, found
    assert found["GOOD"] > rings // 100


def main() -> None:
    """A process of a campaign: prints what came of its rings."""
    folder, seed, count = sys.argv[1:]
    duel = BlockDuel(Path(folder), int(seed))
    duel.play_many(int(count))
    for reason, times in duel.found.items():
        print(reason.name, times)
    print("GOOD", duel.good)
    assert duel.excused <= int(count) // 200, duel.excused
    duel.close()


@pytest.mark.timeout(900)  # against a hang: two processes on a machine that others use
def test_300_000_rings(memory_folder: Path) -> None:
    campaign(memory_folder, 300_000)


@pytest.mark.slow
@pytest.mark.timeout(7200)  # against a hang, too: about 20 minutes of two processors' time
def test_3_000_000_rings(memory_folder: Path) -> None:
    campaign(memory_folder, 3_000_000)


def test_every_way_to_be_wrong(duel: BlockDuel) -> None:
    duel.play_all(20)
    assert {reason for reason in RingRejection if not duel.found[reason]} == NEVER
    assert duel.compiled.compiled > 20 * len(duel.driver.names) // 2


def test_in_a_thread_of_its_own(memory_folder: Path) -> None:
    """As it is in service: what Python does in between, and the end, are the same."""
    duel = BlockDuel(memory_folder, 7, thread=True)
    try:
        duel.play_all(10)
    finally:
        duel.close()


# Memory files that their owner cuts.


@pytest.mark.parametrize("compiled", [False, True], ids=["readable", "compiled"])
def test_cut_memory(memory_folder: Path, compiled: bool) -> None:
    """Under the buffers, and under the rings; 100 times each. Nothing dies."""
    found: Counter[RingRejection | None] = Counter()
    for number in range(220):
        victim = CompiledVictim(memory_folder / "image") if compiled else Victim()
        driver = HostileDriver(victim.memory, number, capacity=SECTORS)
        ring = driver.make("good")
        # One chain whose buffers lie in the part that goes away.
        header = (START + 8 * PAGE).to_bytes(8, "little") + (16).to_bytes(4, "little") + b"\1\0\1\0"
        status = (START + 9 * PAGE).to_bytes(8, "little") + (1).to_bytes(4, "little") + b"\2\0\0\0"
        at = ring.descriptors - START
        victim.memory.inside[at : at + 32] = header + status
        at = ring.available - START
        victim.memory.inside[at : at + 6] = b"\0\0\1\0\0\0"
        os.ftruncate(victim.fd, (1 + 4 * (number % 2)) * PAGE)
        victim.check_guards = lambda: None  # type: ignore[method-assign]  # the guards went, too
        found[victim.run(ring).rejection] += 1
        victim.close()
    assert found == {RingRejection.BUFFER_LOST: 110, RingRejection.RING_UNREACHABLE: 110}


# Planted bugs: each is found.


def plant_no_overrun(patch: pytest.MonkeyPatch) -> None:
    """The readable ring believes the available index."""

    def pending(self: SplitRing) -> int:
        self._available_seen = self._load(self.available + 2)
        return (self._available_seen - self.last_available) & 0xFFFF

    patch.setattr(SplitRing, "pending", pending)


def plant_any_order(patch: pytest.MonkeyPatch) -> None:
    """The readable ring takes readable descriptors behind writable ones."""

    def add(self: Any, address: int, length: int, flags: int) -> None:
        self.count += 1
        self.total += length
        if length:
            (self.writable if flags & 2 else self.readable).append((address, length))

    patch.setattr(split_ring._Walk, "add", add)


def plant_wrapped_head(patch: pytest.MonkeyPatch) -> None:
    """The readable ring takes a head modulo the size."""
    fetch = SplitRing.fetch

    def wrapped(self: SplitRing, head: int) -> Chain:
        return fetch(self, head % self.size)

    patch.setattr(SplitRing, "fetch", wrapped)


def plant_no_in_flight(patch: pytest.MonkeyPatch) -> None:
    """Compiled code's word that a head is available twice is not heard."""
    slow = compiled_ring.CompiledRing._slow

    def deaf(self: compiled_ring.CompiledRing, event: int, head: int) -> bool:
        return event == 0 and slow(self, event, head)

    patch.setattr(compiled_ring.CompiledRing, "_slow", deaf)


@pytest.mark.parametrize(
    "plant",
    [
        plant_no_overrun,
        plant_any_order,
        plant_wrapped_head,
        plant_one_page_more,
        plant_always_indirect,
        plant_no_in_flight,
    ],
)
def test_planted_bugs_are_found(plant: Any, memory_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    duel = BlockDuel(memory_folder, 3)
    try:
        with pytest.raises(AssertionError):
            duel.play_all(50)
    finally:
        duel.close()


def test_the_guards_are_seen() -> None:
    memory = HostileMemory(memoryview(bytearray(HostileMemory.BYTES)))
    memory.view[HostileMemory.BYTES - 1] = GUARD ^ 1
    with pytest.raises(AssertionError):
        memory.check()
