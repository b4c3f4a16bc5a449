"""Hostile rings of packets against both data planes, from one seeded generator.

What a packet that was not delivered leaves behind in a buffer that was offered is each plane's own;
nowhere else may the two differ.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from iolane.memory.ring import NetPath, NetPort
from iolane.memory.signals import Signaller
from iolane.model.virtio import RingRejection, compiled_ring
from iolane.testing.drivers.virtio import DESCRIPTOR
from iolane.testing.drivers.virtio_hostile import SIZE, START, HostileRing
from iolane.testing.drivers.virtio_hostile_net import HostileNetDriver
from iolane.uapi.virtio import DescriptorFlag
from tests.hostile.duel import NEVER, Duel, plant_always_indirect, plant_one_page_more, run_mains
from tests.hostile.net_victims import CompiledNetVictim, NetVictim
from tests.hostile.ring_victims import Outcome

pytestmark = pytest.mark.hostile

OF_ONE_WAY = {
    True: {RingRejection.BUFFER_WRITE_ONLY},
    False: {RingRejection.BUFFER_READ_ONLY, RingRejection.HEAD_IN_FLIGHT},
}
"""What can't be wrong when packets are received, and when they are sent."""


class NetDuel(Duel[NetVictim, CompiledNetVictim]):
    """Of network devices.

    Attributes:
        fast: chains that compiled code did by itself.
    """

    def __init__(self, seed: int, *, receives: bool, mergeable: bool = True, thread: bool = False) -> None:
        self.receives = receives
        self.mergeable = mergeable
        self.fast = 0
        self._thread = thread
        oracle, compiled = self._victims()
        driver = HostileNetDriver(oracle.memory, seed, receives=receives)
        super().__init__(oracle, compiled, driver, seed, named=1 / 8)

    def _victims(self) -> tuple[NetVictim, CompiledNetVictim]:
        options = {"receives": self.receives, "mergeable": self.mergeable}
        return NetVictim(**options), CompiledNetVictim(**options, thread=self._thread)

    @property
    def names(self) -> list[str]:
        """Without mergeable buffers a packet need not get as far as the wrong chain."""
        return self.driver.names if self.mergeable else ["random", "good"]

    def run(self, ring: HostileRing) -> tuple[Outcome, Outcome]:
        seed = self.chance.randrange(1 << 30)
        outcomes = self.oracle.play(ring, seed), self.compiled.play(ring, seed)
        self.fast += self.compiled.fast
        return outcomes

    def same(self, expected: Outcome, outcome: Outcome, ring: HostileRing, before: bytes) -> bool:
        if expected._replace(memory=b"") != outcome._replace(memory=b""):
            return False
        if expected.memory == outcome.memory:
            return True
        offered = self._offered(ring, before) if self.receives else set()
        pairs = enumerate(zip(expected.memory, outcome.memory, strict=True))
        return all(at in offered for at, (one, other) in pairs if one != other)

    def reconcile(self, expected: Outcome) -> None:
        """Counts that differ once would differ for ever."""
        self.close()
        self.oracle, self.compiled = self._victims()
        self.driver.memory = self.oracle.memory

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


WAYS = pytest.mark.parametrize("receives", [False, True], ids=["sent", "received"])


@pytest.fixture
def duels() -> Iterator[list[NetDuel]]:
    duels: list[NetDuel] = []
    yield duels
    for duel in duels:
        duel.close()


def campaign(rings: int) -> None:
    """So many rings, by a process for each way."""
    ways = (False, True)
    counts = run_mains("tests.hostile.test_net_rings", [(int(way), rings // 2) for way in ways])
    for receives, found in zip(ways, counts, strict=True):
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
        duel = NetDuel(100 + mergeable, receives=bool(receives), mergeable=mergeable)
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
def test_every_way_to_be_wrong(duels: list[NetDuel], receives: bool) -> None:
    duels.append(duel := NetDuel(1, receives=receives))
    duel.play_all(10)
    assert {reason for reason in RingRejection if not duel.found[reason]} == NEVER | OF_ONE_WAY[receives]
    assert duel.compiled.compiled > 10 * len(duel.names) // 2


@WAYS
def test_in_a_thread_of_its_own(duels: list[NetDuel], receives: bool) -> None:
    duels.append(duel := NetDuel(7, receives=receives, thread=True))
    duel.play_all(3)


# Planted bugs: each is found.


def plant_every_offload(patch: pytest.MonkeyPatch) -> None:
    """Compiled code believes that everything was negotiated."""

    def believe(self: CompiledNetVictim, queue: Any) -> NetPath:
        path = NetPath(NetPort(0, fd=self.tap._fds[0]), receives=queue.index == 0)
        path.agree(offloads=15, mergeable=True, checksums=True)
        return path

    def make(self: CompiledNetVictim, queue: Any, last: int, used: int | None) -> Any:
        return compiled_ring.CompiledRing(
            self.device,
            queue,
            last,
            used,
            believe(self, queue),
            compiled_ring.Wires(self.kick, -1, Signaller().signal),
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
    plant: Any, receives: bool, duels: list[NetDuel], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    duels.append(duel := NetDuel(3, receives=receives))
    with pytest.raises((AssertionError, compiled_ring.UnreachableRing)):
        duel.play_all(30)
