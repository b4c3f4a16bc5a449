"""Puts tracing between carrier and device, and takes it out again without a trace."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from threading import RLock
from typing import NamedTuple, Protocol

from iolane.errors import IolaneError
from iolane.model.clock import Clock
from iolane.model.device import DeviceError
from iolane.model.dma import Direction, DmaFault, DmaSpace
from iolane.model.interrupts import InterruptIndex, Interrupts
from iolane.model.observers import Observers
from iolane.model.region import Region
from iolane.model.trace.events import (
    DeviceFailed,
    DmaRefused,
    GuestSpins,
    InterruptRaised,
    RegisterAccess,
    TraceEvent,
)
from iolane.model.trace.level import TraceLevel
from iolane.model.trace.names import NameFilter
from iolane.model.trace.session import DROP, Hook, Session, Sink
from iolane.model.trace.target import Target

TARGETS_LIMIT = 4096
"""Offsets of a region that are counted apart; a guest names them, so they are bounded."""
RECENT_EVENTS = 1024
RECENT_SPINS = 64

Read = Callable[[int, int], int]
Write = Callable[[int, int, int], None]


class Traceable(Protocol):
    """What a tracer needs of a device; `PciDevice` has it."""

    name: str
    lock: RLock
    dma: DmaSpace
    clock: Clock
    interrupts: Interrupts
    on_error: Observers[DeviceError]

    @property
    def regions(self) -> tuple[Region | None, ...]: ...

    def report_error(self, where: str, error: Exception) -> None: ...


class RegisterCount(NamedTuple):
    """How often the guest accessed a register."""

    name: str
    reads: int
    writes: int


class Unmodelled(NamedTuple):
    """Accesses to a place where the device has neither register nor memory."""

    region: str
    direction: Direction
    offset: int
    size: int
    times: int

    def __str__(self) -> str:
        return f"{self.direction} {self.region}+{self.offset:#x} ({self.size} bytes) x {self.times}"


def unmodelled(device: Traceable) -> list[Unmodelled]:
    """What the guest touched that the device does not model, most frequent first; known without tracing."""
    with device.lock:
        found = [
            Unmodelled(region.name, Direction(direction), offset, size, count)
            for region in device.regions
            if region is not None
            for (direction, offset, size), count in region.unmodelled.items()
        ]
    return sorted(found, key=lambda item: (-item.times, item.region, item.offset, item.size, item.direction))


class _Tap:
    """One region: the callables that were there, those put in their place, and what was seen."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.targets: dict[int, Target] = {}
        self.writes = 0
        self.others = self.make_others()
        """Stands for what is beyond `TARGETS_LIMIT`."""
        self.before: tuple[Read, Write] | None = None
        self.instead: tuple[Read, Write] | None = None

    def make_others(self) -> Target:
        others = Target(self.region, self.region.size, 0)
        others.name = f"{self.region.name}+others"
        others.names = [others.name]
        return others


class Tracer:
    """The trace of one device. Levels can be changed at any time, from any thread.

    There is one standing setting (`set`), and any number of others may `follow` meanwhile, each with a level,
    filter and sink of its own. While none of them asks for more than `OFF`, the regions have the very
    callables they had before. Memory that the guest maps (`Region.mappable`) is not trapped, so not traced.

    Args:
        device: what to trace.
        spin_reads: so many equal reads of a register ...
        spin_within_ns: ... within this time, with no write to its region between, are a guest that spins.

    Attributes:
        recent: the last events of settings that have no sink.
        spins: the last notices of a guest that spins.
        interrupts: (kind, vector) -> number delivered, while traced.
    """

    def __init__(
        self, device: Traceable, *, spin_reads: int = 256, spin_within_ns: int = 1_000_000_000
    ) -> None:
        self.device = device
        self.recent: deque[TraceEvent] = deque(maxlen=RECENT_EVENTS)
        self.spins: deque[GuestSpins] = deque(maxlen=RECENT_SPINS)
        self.interrupts: Counter[tuple[InterruptIndex, int]] = Counter()
        self._spin_reads = spin_reads
        self._spin_within_ns = spin_within_ns
        self._standing = Session(TraceLevel.OFF)
        self._sessions: tuple[Session, ...] = ()
        self._taps = [_Tap(region) for region in device.regions if region is not None]
        self._listening: list[Callable[[], None]] = []

    # Settings.

    @property
    def level(self) -> TraceLevel:
        """The highest level that anybody asks for."""
        return max((session.level for session in self._sessions), default=TraceLevel.OFF)

    def set(
        self,
        level: TraceLevel,
        *,
        registers: str | None = None,
        direction: Direction | str | None = None,
        sink: Sink | None = None,
        hook: Hook | None = None,
    ) -> None:
        """Change the standing setting.

        Args:
            level: how much.
            registers: globs over names, see `NameFilter`. Interrupts are called `interrupt.MSIX[3]`, refused
                DMA `dma.fault`, exceptions in the device `device.error`.
            direction: only reads or only writes of registers.
            sink: takes the events; without one they are kept in `recent`.
            hook: for level `HOOK`.
        """
        session = self._session(level, registers, direction, sink, hook)
        with self.device.lock:
            others = tuple(item for item in self._sessions if item is not self._standing)
            self._standing = session
            self._change((session, *others) if level else others)

    def follow(
        self,
        level: TraceLevel,
        *,
        registers: str | None = None,
        direction: Direction | str | None = None,
        sink: Sink | None = None,
        hook: Hook | None = None,
    ) -> Callable[[], None]:
        """Trace beside the standing setting, until the returned call is made."""
        session = self._session(level, registers, direction, sink, hook)
        with self.device.lock:
            if level:
                self._change((*self._sessions, session))
        return lambda: self._end(session)

    def off(self) -> None:
        """End the standing setting and everybody's."""
        with self.device.lock:
            self._standing = Session(TraceLevel.OFF)
            self._change(())

    @staticmethod
    def _session(
        level: TraceLevel,
        registers: str | None,
        direction: Direction | str | None,
        sink: Sink | None,
        hook: Hook | None,
    ) -> Session:
        if (hook is not None) is not (level is TraceLevel.HOOK):
            raise IolaneError("trace level hook and a hook go together: give both or neither")
        return Session(level, registers, direction, sink, hook)

    def _end(self, session: Session) -> None:
        with self.device.lock:
            self._change(tuple(item for item in self._sessions if item is not session))

    # Results.

    def counters(self, registers: str | None = None) -> list[RegisterCount]:
        """Accesses by register, in order of region and offset, since tracing first began or `clear`."""
        wants = NameFilter(registers)
        found: dict[str, list[int]] = {}
        with self.device.lock:
            for tap in self._taps:
                targets = sorted(tap.targets.values(), key=lambda target: target.offset)
                for target in [*targets, tap.others]:
                    for name in target.names if target.reads or target.writes else ():
                        if wants(name):
                            count = found.setdefault(name, [0, 0])
                            count[0] += target.reads
                            count[1] += target.writes
        return [RegisterCount(name, reads, writes) for name, (reads, writes) in found.items()]

    def unmodelled(self) -> list[Unmodelled]:
        """What the guest touched that the device does not model, most frequent first."""
        return unmodelled(self.device)

    def clear(self) -> None:
        """Count from 0, forget events and notices."""
        with self.device.lock:
            for tap in self._taps:
                tap.targets.clear()
                tap.others = tap.make_others()
            self.recent.clear()
            self.spins.clear()
            self.interrupts.clear()

    # Putting it in and taking it out.

    def _change(self, sessions: tuple[Session, ...]) -> None:
        if sessions and not self._sessions:
            self._put_in()
        self._sessions = sessions
        for tap in self._taps:
            for target in tap.targets.values():
                self._assign(target)
        if not sessions:
            self._take_out()

    def _put_in(self) -> None:
        for tap in self._taps:
            if hasattr(tap.region.read, "traced") or hasattr(tap.region.write, "traced"):
                raise IolaneError(
                    f"{self.device.name} has a tracer already", remedy="use that one, or turn it off first"
                )
        for tap in self._taps:
            tap.before = tap.region.read, tap.region.write
            tap.instead = self._reader(tap, tap.region.read), self._writer(tap, tap.region.write)
            tap.region.read, tap.region.write = tap.instead
        interrupts = self.device.interrupts
        interrupts.observers.append(self._interrupt)
        self._listening = [
            lambda: interrupts.observers.remove(self._interrupt),
            self.device.dma.on_fault.add(self._fault),
            self.device.on_error.add(self._error),
        ]

    def _take_out(self) -> None:
        for tap in self._taps:
            if tap.before is not None and tap.instead is not None:
                region = tap.region
                if region.read is tap.instead[0]:
                    region.read = tap.before[0]
                if region.write is tap.instead[1]:
                    region.write = tap.before[1]
            tap.before = tap.instead = None
        for end in self._listening:
            end()
        self._listening = []

    def _target(self, tap: _Tap, offset: int, size: int, direction: Direction) -> Target:
        """The target of an access; one that is not kept once there are too many."""
        target = Target(tap.region, offset, size)
        self._assign(target)
        if len(tap.targets) < TARGETS_LIMIT:
            tap.targets[offset << 4 | size] = target
        elif direction is Direction.READ:
            tap.others.reads += 1
        else:
            tap.others.writes += 1
        return target

    def _assign(self, target: Target) -> None:
        """Who is told of accesses to `target`."""
        names = target.names
        target.on_read = tuple(item for item in self._sessions if item.watches(names, Direction.READ))
        target.on_write = tuple(item for item in self._sessions if item.watches(names, Direction.WRITE))

    # The path of an access.

    def _reader(self, tap: _Tap, original: Read) -> Read:
        targets = tap.targets

        def read(offset: int, size: int) -> int:
            value = original(offset, size)
            target = targets.get(offset << 4 | size)
            if target is None:
                target = self._target(tap, offset, size, Direction.READ)
            target.reads += 1
            if target.on_read:
                access = self._tell(target, Direction.READ, value, target.on_read)
                value = access.value
            if value == target.last and target.epoch == tap.writes:
                self._repeated(target)
            else:
                target.last, target.epoch, target.repeats, target.told = value, tap.writes, 1, False
                target.since_ns = self.device.clock.now_ns()
            return value

        read.traced = True  # type: ignore[attr-defined]
        return read

    def _writer(self, tap: _Tap, original: Write) -> Write:
        targets = tap.targets

        def write(offset: int, size: int, value: int) -> None:
            target = targets.get(offset << 4 | size)
            if target is None:
                target = self._target(tap, offset, size, Direction.WRITE)
            target.writes += 1
            tap.writes += 1
            if target.on_write:
                access = self._tell(target, Direction.WRITE, value, target.on_write)
                if access.dropped:
                    return
                value = access.value
            original(offset, size, value)

        write.traced = True  # type: ignore[attr-defined]
        return write

    def _tell(
        self, target: Target, direction: Direction, value: int, sessions: tuple[Session, ...]
    ) -> RegisterAccess:
        """Show an access to hooks, which may change it, then to sinks."""
        device = self.device
        access = RegisterAccess(
            device.clock.now_ns(),
            device.name,
            direction,
            target.region.name,
            target.offset,
            target.size,
            value,
            target.name,
            target.modelled,
            original=value,
        )
        for session in sessions:
            if session.hook is not None and not access.dropped:
                access.fields = target.fields(access.value)
                self._ask(session.hook, access)
        for session in sessions:
            detailed = session.level >= TraceLevel.FIELDS
            access.fields = target.fields(access.value) if detailed else {}
            access.described = target.describe(access.value) if detailed else ""
            self._send(session, access)
        return access

    def _ask(self, hook: Hook, access: RegisterAccess) -> None:
        before = access.value
        full = (1 << 8 * access.size) - 1
        try:
            answer = hook(access)
            if answer is not None and answer is not DROP and not isinstance(answer, int):
                raise TypeError(f"a trace hook returns None, an int or DROP, not {answer!r}")
        except Exception as error:
            access.value = before
            self.device.report_error("a trace hook", error)
            return
        if answer is None:
            access.value = before
        elif answer is DROP:
            access.dropped = True
            access.value = full if access.direction is Direction.READ else before
        else:
            access.value = answer & full

    def _send(self, session: Session, event: TraceEvent) -> None:
        if session.sink is None:
            self.recent.append(event)
            return
        try:
            session.sink(event)
        except Exception as error:
            session.sink = None  # or its failure would be told to it
            self._end(session)
            self.device.report_error("a trace sink, which is no longer used", error)

    def _repeated(self, target: Target) -> None:
        target.repeats += 1
        if target.told or target.repeats < self._spin_reads:
            return
        now = self.device.clock.now_ns()
        if now - target.since_ns > self._spin_within_ns:
            target.repeats, target.since_ns = 1, now
            return
        target.told = True
        notice = GuestSpins(now, self.device.name, target, target.last, target.repeats, now - target.since_ns)
        self.spins.append(notice)
        for session in self._sessions:
            wanted = session.sink is not None and session.direction is not Direction.WRITE
            if wanted and any(session.wants(name) for name in target.names):
                self._send(session, notice)

    # What is not an access.

    def _interrupt(self, kind: InterruptIndex, vector: int) -> None:
        self.interrupts[kind, vector] += 1
        event = InterruptRaised(self.device.clock.now_ns(), self.device.name, kind, vector)
        self._send_named(event.name, event)

    def _fault(self, fault: DmaFault) -> None:
        event = DmaRefused(self.device.clock.now_ns(), self.device.name, fault)
        self._send_named(event.name, event)

    def _error(self, failed: DeviceError) -> None:
        event = DeviceFailed(self.device.clock.now_ns(), self.device.name, failed.where, repr(failed.error))
        self._send_named(event.name, event)

    def _send_named(self, name: str, event: TraceEvent) -> None:
        for session in self._sessions:
            if session.level >= TraceLevel.REGISTERS and session.wants(name):
                self._send(session, event)
