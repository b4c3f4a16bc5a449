"""A recording fed to a device model, without a guest, and what the model does differently.

The model gets the recorded accesses at the recorded times of its own clock, and memory as the guest had it.
Its registers, its interrupts and what it leaves in memory are compared.

What depends on time alone is no difference: while a guest polls a register, the model may be ahead of or
behind the hardware, as long as it shows nothing that the hardware did not, and they agree in the end.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from iolane.errors import IolaneError
from iolane.model.dma import DmaFault, Permission
from iolane.model.interrupts import InterruptIndex, TableOwner
from iolane.model.pci.function import PciDevice
from iolane.model.pci.header import Type0Header
from iolane.model.region import Region
from iolane.model.trace.comparison import Difference, MemoryComparison, compare_registers
from iolane.model.trace.names import NameFilter
from iolane.model.trace.recorded import RecordedEvent, Recording
from iolane.model.trace.target import Target

LARGEST_MEMORY = 1 << 44
COMMAND = Type0Header.COMMAND


@dataclass
class ReplayResult:
    """What came of it."""

    accesses: int = 0
    """Reads and writes of BARs that were made on the model."""
    skipped: int = 0
    """Accesses that were not: of config space, and what the recorded device never got."""
    interrupts: int = 0
    memory: int = 0
    """Pieces of memory that were compared."""
    timing: int = 0
    """Reads of a polled register in which the model was ahead or behind, and interrupts that it has raised as
    one.
    """
    differences: list[Difference] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    """Pattern -> differences that it explains."""

    @property
    def first(self) -> Difference | None:
        """The first difference that nothing explains."""
        return self.differences[0] if self.differences else None

    @property
    def places(self) -> dict[str, list[Difference]]:
        """The differences by register and field, in the order in which they came."""
        found: dict[str, list[Difference]] = {}
        for item in self.differences:
            found.setdefault(item.place, []).append(item)
        return found

    def plain(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "accesses": self.accesses,
            "skipped": self.skipped,
            "interrupts": self.interrupts,
            "memory": self.memory,
            "timing": self.timing,
            "ignored": dict(self.ignored),
            "first": None if self.first is None else self.first._asdict(),
            "places": {place: len(found) for place, found in self.places.items()},
        }


class Replay:
    """Feeds `recording` to `device`, which has no carrier.

    Args:
        ignore: places in which the model may differ, as globs: `bar0.CAP.TO`, `bar0.VS`, `interrupt.*`.
    """

    def __init__(self, recording: Recording, device: PciDevice, *, ignore: list[str] | None = None) -> None:
        self.recording = recording
        self.device = device
        self.result = ReplayResult()
        self._ignore = [(pattern, NameFilter(pattern)) for pattern in ignore or ()]
        self._regions: dict[str, Region] = {item.name: item for item in device.regions if item is not None}
        self._targets: dict[tuple[str, int, int], Target] = {}
        self._raised: Counter[tuple[str, int]] = Counter()
        self._recorded = {(event.kind, event.vector) for event in recording.events if event.op == "interrupt"}
        self._told = 0
        """Times that the device was told something: given memory or, in a recording without, written to."""
        self._told_at: dict[tuple[str, int], int] = {}
        """Interrupt -> `_told` when the model last raised it."""
        self._by_memory = any(event.op == "given" for event in recording.events)
        self._left_behind = MemoryComparison()
        self._memory = -1
        self._polls = _polls(recording.events)
        self._without_news = _without_news(recording.events)

    def run(self) -> ReplayResult:
        """Do it. The device is left as the recording's end left it.

        Raises:
            IolaneError: the recording needs what the model can't have, such as a BAR that it does not have.
        """
        with ExitStack() as stack:
            self._memory = os.memfd_create("iolane-replay", os.MFD_CLOEXEC)
            stack.callback(os.close, self._memory)
            os.ftruncate(self._memory, self._memory_size())
            stack.callback(self.device.disconnect)
            self.device.interrupts.observers.append(self._observe)
            stack.callback(self.device.interrupts.observers.remove, self._observe)
            self._connect()
            for number, event in enumerate(self.recording.events):
                self._step(number, event)
            for difference in self._left_behind.rest():
                self._tell(difference)
            self._check_extra_interrupts()
        return self.result

    # Setting up.

    def _memory_size(self) -> int:
        ends = [event.iova + event.size for event in self.recording.events if event.op == "map"]
        largest = max(ends, default=4096)
        if largest > LARGEST_MEMORY:
            raise IolaneError(
                f"{self.recording.path} maps memory up to {largest:#x}, more than can be replayed"
            )
        return largest

    def _connect(self) -> None:
        """Eventfds for the kinds of interrupts that the guest used: as a client that keeps the tables."""
        interrupts = self.device.interrupts
        with self.device.lock:
            interrupts.table_owner = TableOwner.CARRIER
            for kind in {name for name, _ in self._recorded}:
                group = interrupts.group(_kind(kind))
                for vector in range(group.count):
                    group.connect(vector, os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def _observe(self, kind: InterruptIndex, vector: int) -> None:
        key = kind.name.lower(), vector
        self._raised[key] += 1
        self._told_at[key] = self._told

    # One event.

    def _step(self, number: int, event: RecordedEvent) -> None:
        device = self.device
        behind = event.at - device.clock.now_ns()
        if behind > 0:
            device.clock.advance(behind)
        self._told += event.op == ("given" if self._by_memory else "write")
        with device.lock:
            if event.op in ("read", "write"):
                self._access(number, event)
            elif event.op == "interrupt":
                self._interrupt(number, event)
            elif event.op == "map":
                permission = Permission(event.permission)
                device.dma.map(
                    event.iova, event.size, fd=self._memory, offset=event.iova, permission=permission
                )
            elif event.op == "unmap":
                device.dma.unmap(event.iova, event.size)
            elif event.op == "reset":
                device.reset()
            elif event.op == "given":
                os.pwrite(self._memory, event.content, event.iova)
            elif event.op == "left":
                self._left(event)

    def _access(self, number: int, event: RecordedEvent) -> None:
        if event.region == "config":
            self._config(event)
            return
        if event.dropped:
            self.result.skipped += 1
            return
        region = self._regions.get(event.region)
        if region is None or event.offset + event.size > region.size:
            where = f"{self.recording.path}, line {event.line}"
            raise IolaneError(f"{where}: {event.register} is in no region of {self.device.name}")
        self.result.accesses += 1
        if event.op == "write":
            region.write(event.offset, event.size, event.value)
        else:
            self._read(number, event, region.read(event.offset, event.size), region)

    def _config(self, event: RecordedEvent) -> None:
        """Config space is the hypervisor's work on real hardware, and its layout is the device's own: of it
        only COMMAND is replayed (decoding and bus master).
        """
        end = COMMAND.offset + COMMAND.width
        if event.op == "read" or not event.offset <= COMMAND.offset < end <= event.offset + event.size:
            self.result.skipped += 1
            return
        value = event.value >> 8 * (COMMAND.offset - event.offset) & COMMAND.full
        self.device.config.write(COMMAND.offset, COMMAND.width, value)

    def _read(self, number: int, event: RecordedEvent, value: int, region: Region) -> None:
        if value == event.value:
            return
        poll = self._polls.get(number)
        if poll is not None and number != poll.last and value in poll.values:
            self.result.timing += 1
            return
        key = event.region, event.offset, event.size
        target = self._targets.get(key)
        if target is None:
            target = self._targets[key] = Target(region, event.offset, event.size)
        for difference in compare_registers(event.line, target, event.value, value):
            self._tell(difference)

    def _interrupt(self, number: int, event: RecordedEvent) -> None:
        self.result.interrupts += 1
        key = event.kind, event.vector
        again = key in self._told_at and number in self._without_news
        if not self._raised[key] and (again or self._told_at.get(key) == self._told):
            self.result.timing += 1  # one interrupt of the model's for several of the hardware's
        elif not self._raised[key]:
            name = f"interrupt.{event.kind.upper()}[{event.vector}]"
            self._tell(Difference(event.line, name, "raised", "not raised"))
        self._raised[key] = 0  # several may have become one
        group = self.device.interrupts.group(_kind(event.kind))
        if group.automasked and event.vector < group.count:
            group.unmask(event.vector)

    def _left(self, event: RecordedEvent) -> None:
        self.result.memory += 1
        content = event.content
        try:
            found = self.device.dma.read(event.iova, len(content))
        except DmaFault:
            found = os.pread(self._memory, len(content), event.iova)
        for difference in self._left_behind.compare(event, content, found):
            self._tell(difference)

    def _check_extra_interrupts(self) -> None:
        """What the hardware never raised in the whole session. (How often is a matter of time.)"""
        last = self.recording.events[-1].line if self.recording.events else 0
        for (kind, vector), count in sorted(self._raised.items()):
            if count and (kind, vector) not in self._recorded:
                name = f"interrupt.{kind.upper()}[{vector}]"
                self._tell(Difference(last, name, "never raised", f"raised {count} times"))

    def _tell(self, difference: Difference) -> None:
        for pattern, covers in self._ignore:
            if any(covers(name) for name in difference.names):
                self.result.ignored[pattern] += 1
                return
        self.result.differences.append(difference)


@dataclass(frozen=True)
class _Poll:
    """Reads of one register in a row, with no access between."""

    last: int
    """Number of the event."""
    values: frozenset[int]


def _polls(events: list[RecordedEvent]) -> dict[int, _Poll]:
    """The poll that each read belongs to."""
    found: dict[int, _Poll] = {}
    run: list[int] = []

    def end() -> None:
        if len(run) > 1:
            poll = _Poll(run[-1], frozenset(events[number].value for number in run))
            found.update(dict.fromkeys(run, poll))
        run.clear()

    for number, event in enumerate(events):
        if event.op == "write":
            end()
        elif event.op == "read":
            first = events[run[0]] if run else event
            if (first.region, first.offset, first.size) != (event.region, event.offset, event.size):
                end()
            run.append(number)
    end()
    return found


def _without_news(events: list[RecordedEvent]) -> frozenset[int]:
    """Interrupts behind which nothing was left in memory, of vectors that tell of memory else: the hardware
    said again what it had said before.
    """
    bare: dict[tuple[str, int], list[int]] = {}
    telling: set[tuple[str, int]] = set()
    for number, event in enumerate(events):
        if event.op == "interrupt":
            key = event.kind, event.vector
            if events[number + 1 : number + 2] and events[number + 1].op == "left":
                telling.add(key)
            else:
                bare.setdefault(key, []).append(number)
    return frozenset(number for key in telling for number in bare.get(key, ()))


def _kind(name: str) -> InterruptIndex:
    try:
        return InterruptIndex[name.upper()]
    except KeyError:
        raise IolaneError(f"a recording has interrupts of no known kind: {name!r}") from None
