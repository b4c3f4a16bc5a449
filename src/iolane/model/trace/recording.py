"""A session with a device, recorded: accesses, interrupts, maps, resets, and what can be seen of memory.

A recording is a file of lines of JSON. The first says what was recorded, the last how it ended. Between them
each line is one event:

    {"at": ns, "op": "read" | "write", "region": "bar0", "offset": 20, "size": 4, "value": 1, "register": ...}
        `value` is the device's: what it answered, or what it was given. `seen`: what the guest saw or wrote
        instead, where a hook changed it. `dropped`: the device never got it.
        `in_memory`: a register that the guest keeps in memory, such as a shadow doorbell.
    {"at": ns, "op": "interrupt", "kind": "msix", "vector": 1}
    {"at": ns, "op": "map", "iova": ..., "size": ..., "permission": 3}
    {"at": ns, "op": "unmap", "iova": ..., "size": ...}
    {"at": ns, "op": "reset"}
    {"at": ns, "op": "given", "iova": ..., "data": base64}       memory before the device was told to read it
    {"at": ns, "op": "left", "iova": ..., "data": base64, ...}   memory as the device left it

The DMA of hardware is not seen by whoever mediates; memory is recorded where a `RecordedMemory` says that the
device is about to read it, or has written it.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Protocol, Self

import msgspec

from iolane.errors import IolaneError
from iolane.model.dma import Direction, DmaFault, DmaSpace, MapChange
from iolane.model.interrupts import InterruptIndex
from iolane.model.observers import Observers
from iolane.model.pci.header import Type0Header
from iolane.model.region import RegionIndex
from iolane.model.reset import ResetKind
from iolane.model.trace.events import InterruptRaised, RegisterAccess, TraceEvent
from iolane.model.trace.level import TraceLevel
from iolane.model.trace.tracer import Traceable, Tracer

VERSION = 2
"""2: `placed` of memory."""
LARGEST = 256 << 20
"""Bytes of a recording, unless told otherwise; what comes then is not recorded, and the end says so."""
LARGEST_PIECE = 1 << 20
"""Bytes of memory in one event."""

COMMAND = Type0Header.COMMAND
GIVEN, LEFT = "given", "left"
Event = dict[str, Any]


class MemoryField(NamedTuple):
    """A number in memory that has a name: bits `mask` of the `size` bytes at `offset`, shifted down."""

    name: str
    offset: int
    size: int
    mask: int


class MemoryPart(NamedTuple):
    """Memory that matters: `given` to the device to read, or as it `left` it.

    Attributes:
        fields: what it is made of; without, it is bytes.
        stride: it is an array of records of so many bytes, else one.
        key: fields that say which record is which, where their order is the device's choice.
        placed: fields that go with the place and not with the record, such as a phase bit. Where they are not
            as they should be the device has left nothing.
        data: what was read there already, where the guest may change it meanwhile.
    """

    iova: int
    length: int
    name: str
    op: str = GIVEN
    fields: tuple[MemoryField, ...] = ()
    stride: int = 0
    key: tuple[str, ...] = ()
    placed: tuple[str, ...] = ()
    data: bytes | None = None


class MemoryKick(NamedTuple):
    """A register that the guest keeps in memory, where the device looks for it: it is as if it had been
    written.
    """

    region: str
    offset: int
    size: int
    value: int
    register: str


Seen = MemoryPart | MemoryKick


class RecordedMemory(Protocol):
    """Knows a kind of device: which memory it will read when it is told so, and where it wrote.

    It is asked under the device's lock, and reads the guest's memory by `dma`; whatever the guest put there,
    it must come to an end.
    """

    def before(self, access: RegisterAccess, dma: DmaSpace) -> Iterable[Seen]:
        """The guest makes this access; if it makes the device read memory, which?"""

    def after(self, kind: InterruptIndex, vector: int, dma: DmaSpace) -> Iterable[Seen]:
        """The device interrupts: what did it write, and what had it read that nobody saw it told of?"""


class Recordable(Traceable, Protocol):
    """What is recorded: a device that can be traced."""

    was_reset: Observers[ResetKind]


class Recorder:
    """Writes a recording. A context manager: leaving writes its end.

    Args:
        path: of the file, made anew.
        memory: says which memory is worth recording.
        limit: bytes of the file.

    Attributes:
        events: written so far.
        lost: events that the limit kept out.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, memory: RecordedMemory | None = None, limit: int = LARGEST
    ) -> None:
        self.path = Path(path)
        self.events = self.lost = 0
        self._memory = memory
        self._limit = limit
        self._written = 0
        self._encoder = msgspec.json.Encoder()
        self._device: Recordable | None = None
        try:
            self._file: BinaryIO | None = self.path.open("wb")
        except OSError as error:
            raise IolaneError(f"{path} can't be written: {error.strerror}") from None

    def attach(self, device: Recordable, tracer: Tracer) -> Callable[[], None]:
        """Record `device` until the returned call is made. Its trace tells what happens."""
        if self._device is not None:
            raise IolaneError(f"{self.path} is the recording of {self._device.name} already")
        self._device = device
        regions = {item.name: item.size for item in device.regions if item is not None}
        self._line({"recording": VERSION, "device": device.name, "regions": regions})
        with ExitStack() as stack, device.lock:
            self._command(device)
            for iova, size, permission, _ in device.dma.maps:
                self._map(MapChange(iova, size, permission))
            stack.callback(device.dma.on_change.add(self._map))
            stack.callback(device.was_reset.add(lambda _: self._reset(device)))
            stack.callback(tracer.follow(TraceLevel.REGISTERS, sink=self._traced))
            return stack.pop_all().close

    def _reset(self, device: Recordable) -> None:
        self._event("reset")
        self._command(device)

    def _command(self, device: Recordable) -> None:
        """Whether the function decodes and may do DMA: at the beginning, and after a reset (VFIO gives the
        function its header back).
        """
        config = device.regions[RegionIndex.CONFIG]
        if config is not None:
            value = config.read(COMMAND.offset, COMMAND.width)
            place = {"region": config.name, "offset": COMMAND.offset, "size": COMMAND.width}
            self._event("write", **place, value=value, register="config.COMMAND")

    # What happens.

    def _traced(self, event: TraceEvent) -> None:
        if isinstance(event, RegisterAccess):
            self._access(event)
        elif isinstance(event, InterruptRaised):
            self._interrupt(event)

    def _interrupt(self, event: InterruptRaised) -> None:
        """What the device must have been told before comes before, what it left behind it."""
        seen: list[Seen] = []
        if self._memory is not None and self._device is not None:
            seen = list(self._memory.after(event.kind, event.vector, self._device.dma))
        left = [part for part in seen if isinstance(part, MemoryPart) and part.op == LEFT]
        self._parts(part for part in seen if part not in left)
        self._event("interrupt", kind=event.kind.name.lower(), vector=event.vector)
        self._parts(left)

    def _access(self, access: RegisterAccess) -> None:
        if self._memory is not None and self._device is not None:
            self._parts(self._memory.before(access, self._device.dma))
        reads = access.direction is Direction.READ
        event: Event = {
            "region": access.region,
            "offset": access.offset,
            "size": access.size,
            "value": access.original if reads else access.value,
            "register": access.register,
        }
        if access.dropped:
            event["dropped"] = True
        elif access.value != access.original:
            event["seen"] = access.value if reads else access.original
        self._event(str(access.direction), **event)

    def _map(self, change: MapChange) -> None:
        if change.permission is None:
            self._event("unmap", iova=change.iova, size=change.size)
        else:
            self._event("map", iova=change.iova, size=change.size, permission=int(change.permission))

    def _parts(self, parts: Iterable[Seen]) -> None:
        if self._device is None:
            return
        for part in parts:
            if isinstance(part, MemoryKick):
                self._event("write", **part._asdict(), in_memory=True)
                continue
            try:
                data = part.data or self._device.dma.read(part.iova, min(part.length, LARGEST_PIECE))
            except DmaFault:
                continue  # the guest named it, and has no such memory
            event: Event = {"iova": part.iova, "data": b64encode(data).decode(), "name": part.name}
            if part.fields:
                event["fields"] = [list(field) for field in part.fields]
            if part.stride:
                event |= {"stride": part.stride, "key": list(part.key)}
            if part.placed:
                event["placed"] = list(part.placed)
            self._event(part.op, **event)

    # Writing.

    def _event(self, op: str, **values: Any) -> None:
        assert self._device is not None
        line = {"at": self._device.clock.now_ns(), "op": op, **values}
        if self._line(line):
            self.events += 1
        else:
            self.lost += 1

    def _line(self, line: Event) -> bool:
        if self._file is None or self._written >= self._limit:
            return False
        data = self._encoder.encode(line) + b"\n"
        self._written += len(data)
        self._file.write(data)
        return True

    def close(self) -> None:
        """Write the end, close the file. Idempotent."""
        if self._file is None:
            return
        self._file.write(
            self._encoder.encode({"op": "end", "events": self.events, "lost": self.lost}) + b"\n"
        )
        self._file.close()
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
