"""Hostile rings of packets against both data planes, ring by ring, from one seeded generator.

What a packet that was not delivered leaves behind in a buffer that was offered is each plane's own;
nowhere else may the two differ.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from iolane.memory.ring import CompiledQueue, NetPath, NetPort, RegionTable
from iolane.model.dma import DmaSpace, HostRegion
from iolane.model.virtio import RingRejection, compiled_ring
from iolane.testing.drivers.virtio import DESCRIPTOR
from iolane.testing.drivers.virtio_hostile import PAGE, SIZE, START, HostileRing
from iolane.testing.drivers.virtio_hostile_net import HostileNetDriver
from iolane.uapi.virtio import DescriptorFlag
from tests.hostile.net_victims import CompiledNetVictim, NetVictim
from tests.hostile.ring_victims import Outcome

pytestmark = pytest.mark.hostile

PROCESSES = 2
NAMED = 1 / 8
WHOLE_QUEUE = {
    "size",
    "alignment",
    "address",
    "ring nowhere",
    "ring read-only",
    "not negotiated",
    "bus master",
    "random",
    "good",
}
NEVER = {RingRejection.BUFFER_LOST}
OF_ONE_WAY = {
    True: {RingRejection.BUFFER_WRITE_ONLY},
    False: {RingRejection.BUFFER_READ_ONLY, RingRejection.HEAD_IN_FLIGHT},
}
"""What can't be wrong when packets are received, and when they are sent."""


class Wrong(AssertionError):
    """The planes disagree, or a rule has another name."""


class Duel:
    """Both victims, and what they rejected."""

    def __init__(self, seed: int, *, receives: bool, mergeable: bool = True, thread: bool = False) -> None:
        self.receives = receives
        self.mergeable = mergeable
        self.oracle = NetVictim(receives=receives, mergeable=mergeable)
        self.compiled = CompiledNetVictim(receives=receives, mergeable=mergeable, thread=thread)
        self.driver = HostileNetDriver(self.oracle.memory, seed, receives=receives)
        self.chance = random.Random(seed)
        self.found: Counter[RingRejection] = Counter()
        self.good = self.excused = self.fast = 0

    @property
    def names(self) -> list[str]:
        """Without mergeable buffers a packet need not get as far as the wrong chain."""
        return self.driver.names if self.mergeable else ["random", "good"]

    def play(self, name: str) -> None:
        """One ring on both."""
        ring = self.driver.make(name)
        before = bytes(self.oracle.memory.inside)
        self.compiled.memory.inside[:] = before
        seed = self.chance.randrange(1 << 30)
        expected = self.oracle.play(ring, seed)
        outcome = self.compiled.play(ring, seed)
        self.fast += self.compiled.fast
        if name != "random" and expected.rejection is not ring.expected:
            raise Wrong(f"{name}: {expected.rejection!r}, not {ring.expected!r}")
        if not self._same(expected, outcome, before, ring):
            if not self._names_its_rings(ring, before, tables=name == "random"):
                raise Wrong(f"{name}: {outcome.rejection!r} compiled, {expected.rejection!r} readable")
            self.excused += 1
            self.begin_anew()
        if expected.rejection is None:
            self.good += 1
        else:
            self.found[expected.rejection] += 1

    def begin_anew(self) -> None:
        """Counts that differ once would differ for ever."""
        for victim in (self.oracle, self.compiled):
            victim.close()
        thread = self.compiled._thread
        self.oracle = NetVictim(receives=self.receives, mergeable=self.mergeable)
        self.compiled = CompiledNetVictim(receives=self.receives, mergeable=self.mergeable, thread=thread)
        self.driver.memory = self.oracle.memory

    def _same(self, expected: Outcome, outcome: Outcome, before: bytes, ring: HostileRing) -> bool:
        if (expected.rejection, expected.disk) != (outcome.rejection, outcome.disk):
            return False
        if expected.memory == outcome.memory:
            return True
        if not self.receives or len(expected.memory) != len(outcome.memory):
            return False
        offered = self._offered(ring, before)
        cut = ring.used - START if expected.rejection is not None else len(before)
        skip = len(before) - len(expected.memory)
        return all(
            (at if at < cut else at + skip) in offered
            for at, (one, other) in enumerate(zip(expected.memory, outcome.memory, strict=True))
            if one != other
        )

    @staticmethod
    def _offered(ring: HostileRing, memory: bytes) -> set[int]:
        """Where the device may write: what the descriptors name, those of indirect tables, too."""
        table = memory[ring.descriptors - START :][: 16 * SIZE]
        rows = list(DESCRIPTOR.iter_unpack(table))
        for address, length, flags, _ in list(rows):
            if flags & DescriptorFlag.INDIRECT and 0 <= address - START < len(memory):
                inner = memory[address - START :][: min(length, 1 << 15) // 16 * 16]
                rows += DESCRIPTOR.iter_unpack(inner)
        offered: set[int] = set()
        for address, length, flags, _ in rows:
            if flags & DescriptorFlag.WRITE and 0 <= address - START < len(memory):
                offered.update(range(address - START, min(address - START + length, len(memory))))
        return offered

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
        for _ in range(count):
            self.play(self.chance.choice(self.names) if self.chance.random() < NAMED else "random")

    def close(self) -> None:
        self.oracle.close()
        self.compiled.close()


WAYS = pytest.mark.parametrize("receives", [False, True], ids=["sent", "received"])


@pytest.fixture
def duels() -> Iterator[list[Duel]]:
    duels: list[Duel] = []
    yield duels
    for duel in duels:
        duel.close()


def campaign(rings: int) -> None:
    """So many rings, by a process for each way."""
    command = [sys.executable, "-c", "from tests.hostile.test_net_rings import main; main()"]
    processes = {
        receives: subprocess.Popen(
            [*command, str(int(receives)), str(rings // 2)], stdout=subprocess.PIPE, text=True
        )
        for receives in (False, True)
    }
    for receives, process in processes.items():
        output = process.communicate()[0]
        assert process.returncode == 0
        found = Counter({name: int(count) for name, count in (line.split() for line in output.splitlines())})
        few = {reason for reason in RingRejection if found[reason.name] < 10}
        assert few == NEVER | OF_ONE_WAY[receives], found
        assert found["GOOD"] > rings // 100
        assert found["FAST"] > found["GOOD"], "compiled code does most"


def main() -> None:
    """A process of a campaign: prints what came of its rings."""
    receives, count = (int(word) for word in sys.argv[1:])
    found: Counter[str] = Counter()
    for mergeable in (True, False):
        share = count * 4 // 5 if mergeable else count // 5
        duel = Duel(100 + mergeable, receives=bool(receives), mergeable=mergeable)
        duel.play_many(share)
        found.update({reason.name: times for reason, times in duel.found.items()})
        found["GOOD"] += duel.good
        found["FAST"] += duel.fast
        assert duel.excused <= share // 50, duel.excused
        duel.close()
    for name, times in found.items():
        print(name, times)


@pytest.mark.timeout(600)
def test_10_000_rings() -> None:
    campaign(10_000)


@pytest.mark.slow
@pytest.mark.timeout(6000)
def test_400_000_rings() -> None:
    campaign(400_000)


@WAYS
def test_every_way_to_be_wrong(duels: list[Duel], receives: bool) -> None:
    duels.append(duel := Duel(1, receives=receives))
    for _ in range(10):
        for name in duel.names:
            duel.play(name)
    assert {reason for reason in RingRejection if not duel.found[reason]} == NEVER | OF_ONE_WAY[receives]
    assert duel.compiled.compiled > 10 * len(duel.names) // 2


@WAYS
def test_in_a_thread_of_its_own(duels: list[Duel], receives: bool) -> None:
    duels.append(duel := Duel(7, receives=receives, thread=True))
    for name in duel.names:
        for _ in range(3):
            duel.play(name)


# Planted bugs: each is found.


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


def plant_every_offload(patch: pytest.MonkeyPatch) -> None:
    """Compiled code believes that everything was negotiated."""

    def believe(self: CompiledNetVictim, queue: Any) -> NetPath:
        path = NetPath(NetPort(0, fd=self.tap._fds[0]), receives=queue.index == 0)
        path.agree(offloads=15, mergeable=True, checksums=True)
        return path

    def make(self: CompiledNetVictim, queue: Any, last: int, used: int | None) -> Any:
        return compiled_ring.CompiledRing(
            self.device, queue, last, used, believe(self, queue), compiled_ring.Wires(self.kick, -1)
        )

    patch.setattr(CompiledNetVictim, "_make", make)


def plant_no_unpop(patch: pytest.MonkeyPatch) -> None:
    """A chain that was of no use in a turn is not available again."""

    def drop(self: compiled_ring.CompiledRing, head: int) -> None:
        self._engine.complete(head, 0)

    patch.setattr(compiled_ring.CompiledRing, "unpop", drop)


@pytest.mark.parametrize(
    ("plant", "receives"),
    [
        (plant_one_page_more, True),
        (plant_one_page_more, False),
        (plant_always_indirect, True),
        (plant_always_indirect, False),
        (plant_every_offload, True),
        (plant_every_offload, False),
        (plant_no_unpop, True),
    ],
)
def test_planted_bugs_are_found(
    plant: Any, receives: bool, duels: list[Duel], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    duels.append(duel := Duel(3, receives=receives))

    def play() -> None:
        for _ in range(30):
            for name in duel.names:
                duel.play(name)

    with pytest.raises((AssertionError, compiled_ring.UnreachableRing)):
        play()
