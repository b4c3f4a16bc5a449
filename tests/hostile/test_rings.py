"""Hostile rings against both data planes, ring by ring, from one seeded generator.

Each ring is written once and copied; the readable ring is the compiled one's oracle.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iolane.memory.ring import CompiledQueue, RegionTable
from iolane.model.dma import DmaSpace, HostRegion
from iolane.model.virtio import RingRejection, SplitRing, compiled_ring, split_ring
from iolane.model.virtio.chain import Chain
from iolane.testing.drivers.virtio import DESCRIPTOR
from iolane.testing.drivers.virtio_hostile import (
    GUARD,
    PAGE,
    SIZE,
    START,
    HostileDriver,
    HostileMemory,
    HostileRing,
)
from iolane.uapi.virtio import DescriptorFlag
from tests.hostile.ring_victims import SECTORS, CompiledVictim, Victim

pytestmark = pytest.mark.hostile

PROCESSES = 2
NAMED = 1 / 16
"""How many of the rings are wrong in a way that has a name, the others at random."""
NEVER = {RingRejection.BUFFER_LOST}
"""Needs a memory file that is cut, below."""


class Wrong(AssertionError):
    """The planes disagree, or a rule has another name."""


class Duel:
    """Both victims, and what they rejected."""

    def __init__(self, folder: Path, seed: int, *, thread: bool = False) -> None:
        self.oracle = Victim()
        self.compiled = CompiledVictim(folder / f"image{seed}", thread=thread)
        self.driver = HostileDriver(self.oracle.memory, seed, capacity=SECTORS)
        self.chance = random.Random(seed)
        self.found: Counter[RingRejection] = Counter()
        self.good = 0
        self.excused = 0

    def play(self, name: str) -> None:
        """One ring on both."""
        ring = self.driver.make(name)
        before = bytes(self.oracle.memory.inside)
        self.compiled.memory.inside[:] = before
        expected = self.oracle.run(ring)
        outcome = self.compiled.run(ring)
        if name != "random" and expected.rejection is not ring.expected:
            raise Wrong(f"{name}: {expected.rejection!r}, not {ring.expected!r}")
        if outcome != expected:
            if not self._names_its_rings(ring, before, tables=name == "random"):
                how = [f"{each.rejection!r} at {each.base}" for each in (outcome, expected)]
                raise Wrong(f"{name}: {how[0]} compiled, {how[1]} readable")
            self.excused += 1
            self.compiled.set_disk(expected.disk)
        if expected.rejection is None:
            self.good += 1
        else:
            self.found[expected.rejection] += 1

    @staticmethod
    def _names_its_rings(ring: HostileRing, memory: bytes, *, tables: bool) -> bool:
        """A chain with the rings as data: what it sees and does there is up to when a plane looks at them.

        With `tables` also one that may name them in an indirect table.
        """
        end = max(ring.descriptors + 16 * SIZE, ring.available + 6 + 2 * SIZE, ring.used + 6 + 8 * SIZE)
        table = memory[ring.descriptors - START :][: 16 * SIZE]
        return any(
            START <= address < end or (tables and flags & DescriptorFlag.INDIRECT)
            for address, _, flags, _ in DESCRIPTOR.iter_unpack(table)
        )

    def play_many(self, count: int) -> None:
        names = self.driver.names
        for _ in range(count):
            self.play(self.chance.choice(names) if self.chance.random() < NAMED else "random")

    def close(self) -> None:
        self.oracle.close()
        self.compiled.close()


@pytest.fixture
def duel(memory_folder: Path) -> Iterator[Duel]:
    duel = Duel(memory_folder, 1)
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
    command = [sys.executable, "-c", "from tests.hostile.test_rings import main; main()"]
    processes = [
        subprocess.Popen([*command, str(folder), str(seed), str(share)], stdout=subprocess.PIPE, text=True)
        for seed in range(100, 100 + PROCESSES)
    ]
    found: Counter[str] = Counter()
    played = 0
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES
    for output in outputs:
        for line in output.splitlines():
            name, count = line.split()
            found[name] += int(count)
            played += int(count)
    assert played >= rings
    few = {reason for reason in RingRejection if found[reason.name] < 100}
    assert few == NEVER, found
    assert found["GOOD"] > rings // 100


def main() -> None:
    """A process of a campaign: prints what came of its rings."""
    folder, seed, count = sys.argv[1:]
    duel = Duel(Path(folder), int(seed))
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


def test_every_way_to_be_wrong(duel: Duel) -> None:
    for _ in range(20):
        for name in duel.driver.names:
            duel.play(name)
    assert {reason for reason in RingRejection if not duel.found[reason]} == NEVER
    assert duel.compiled.compiled > 20 * len(duel.driver.names) // 2


def test_in_a_thread_of_its_own(memory_folder: Path) -> None:
    """As it is in service: what Python does in between, and the end, are the same."""
    duel = Duel(memory_folder, 7, thread=True)
    try:
        for name in duel.driver.names:
            for _ in range(10):
                duel.play(name)
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


def plant_one_page_more(patch: pytest.MonkeyPatch) -> None:
    """Compiled code believes that each region is a page longer."""
    table = compiled_ring.region_table

    def longer(dma: DmaSpace, regions: list[HostRegion]) -> RegionTable:
        return table(dma, [item._replace(size=item.size + PAGE) for item in regions])

    patch.setattr(compiled_ring, "region_table", longer)


def plant_always_indirect(patch: pytest.MonkeyPatch) -> None:
    """Compiled code follows indirect descriptors whether they were negotiated or not."""

    def make(**options: Any) -> CompiledQueue:
        return CompiledQueue(**{**options, "indirect": True})

    patch.setattr(compiled_ring, "CompiledQueue", make)


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
    duel = Duel(memory_folder, 3)

    def play() -> None:
        for _ in range(50):
            for name in duel.driver.names:
                duel.play(name)

    try:
        with pytest.raises(AssertionError):
            play()
    finally:
        duel.close()


def test_the_guards_are_seen() -> None:
    memory = HostileMemory(memoryview(bytearray(HostileMemory.BYTES)))
    memory.view[HostileMemory.BYTES - 1] = GUARD ^ 1
    with pytest.raises(AssertionError):
        memory.check()
