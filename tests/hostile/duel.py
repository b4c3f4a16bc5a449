"""Hostile rings against both data planes, ring by ring: what block and network devices' tests share.

Each ring is written once and copied; the readable ring is the compiled one's oracle.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import pytest

from iolane.memory.ring import CompiledQueue, RegionTable
from iolane.model.dma import DmaSpace, HostRegion
from iolane.model.virtio import RingRejection, compiled_ring
from iolane.testing.drivers.virtio import DESCRIPTOR
from iolane.testing.drivers.virtio_hostile import PAGE, SIZE, START, HostileDriver, HostileRing
from iolane.uapi.virtio import DescriptorFlag
from tests.hostile.ring_victims import Outcome, RingVictim

NEVER = {RingRejection.BUFFER_LOST}
"""Needs a memory file that is cut."""

Oracle = TypeVar("Oracle", bound=RingVictim)
Compiled = TypeVar("Compiled", bound=RingVictim)


class Wrong(AssertionError):
    """The planes disagree, or a rule has another name."""


class Duel(Generic[Oracle, Compiled]):
    """Both victims, and what they rejected.

    Args:
        oracle, compiled: a device on the readable data plane, and the same on the compiled one.
        driver: makes the rings, in the oracle's memory.
        named: how many of many rings are wrong in a way that has a name, the others at random.
    """

    def __init__(
        self, oracle: Oracle, compiled: Compiled, driver: HostileDriver, seed: int, *, named: float
    ) -> None:
        self.oracle = oracle
        self.compiled = compiled
        self.driver = driver
        self.chance = random.Random(seed)
        self.found: Counter[RingRejection] = Counter()
        self.good = self.excused = 0
        self._named = named

    @property
    def names(self) -> list[str]:
        """The rings that are played."""
        return self.driver.names

    def play(self, name: str) -> None:
        """One ring on both."""
        ring = self.driver.make(name)
        before = bytes(self.oracle.memory.inside)
        self.compiled.memory.inside[:] = before
        expected, outcome = self.run(ring)
        if name != "random" and expected.rejection is not ring.expected:
            raise Wrong(f"{name}: {expected.rejection!r}, not {ring.expected!r}")
        if not self.same(expected, outcome, ring, before):
            if not _names_its_rings(ring, before, tables=name == "random"):
                how = [f"{each.rejection!r} at {each.base}" for each in (outcome, expected)]
                raise Wrong(f"{name}: {how[0]} compiled, {how[1]} readable")
            self.excused += 1
            self.reconcile(expected)
        if expected.rejection is None:
            self.good += 1
        else:
            self.found[expected.rejection] += 1

    def run(self, ring: HostileRing) -> tuple[Outcome, Outcome]:
        """What comes of it on the readable plane, and on the compiled one."""
        return self.oracle.run(ring), self.compiled.run(ring)

    def same(self, expected: Outcome, outcome: Outcome, ring: HostileRing, before: bytes) -> bool:
        """Whether the planes agree."""
        return expected == outcome

    def reconcile(self, expected: Outcome) -> None:
        """After an excused difference: what lasts longer than a ring is the same again."""

    def play_all(self, times: int) -> None:
        """Each way to be wrong, so many times."""
        for _ in range(times):
            for name in self.names:
                self.play(name)

    def play_many(self, count: int) -> None:
        """So many rings, as the dice fall."""
        names = self.names
        for _ in range(count):
            self.play(self.chance.choice(names) if self.chance.random() < self._named else "random")

    def close(self) -> None:
        self.oracle.close()
        self.compiled.close()


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


def run_mains(module: str, arguments: Sequence[Sequence[object]]) -> list[Counter[str]]:
    """A process of `module.main` for each list of arguments, all at once: the counts that each prints."""
    command = [sys.executable, "-c", f"from {module} import main; main()"]
    processes = [
        subprocess.Popen([*command, *map(str, words)], stdout=subprocess.PIPE, text=True)
        for words in arguments
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    lines = [[line.split() for line in output.splitlines()] for output in outputs]
    return [Counter({name: int(count) for name, count in each}) for each in lines]


# Planted bugs of compiled code's that every device's rings must show.


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
