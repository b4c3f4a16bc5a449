"""The device's side of a split virtqueue (virtio 1.3, 2.7), readable: the oracle of the compiled one.

Everything in a ring is the guest's and may change while it is read, so that each value is read once, checked,
and used. What breaks a rule raises `BrokenRing` with the rule's name.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Protocol

from iolane.memory.fence import fence
from iolane.model.dma import DmaFault, DmaSpace, FaultReason
from iolane.model.virtio.chain import Chain, Piece
from iolane.model.virtio.rejection import BrokenRing, RingRejection
from iolane.uapi.virtio import AVAIL_F_NO_INTERRUPT, USED_F_NO_NOTIFY, DescriptorFlag

MAX_SIZE = 32768
"""The largest power of two of a 16-bit index (2.7)."""
MAX_CHAIN_BYTES = 1 << 32
DESCRIPTOR = struct.Struct("<QIHH")
"""struct virtq_desc: addr, len, flags, next (2.7.5)."""
_USED_ELEMENT = struct.Struct("<II")
_ADDRESS_SPACE = 1 << 64
_LENGTH_LIMIT = (1 << 32) - 1


class Ring(Protocol):
    """What a virtqueue needs of the rings behind it, compiled or not.

    Attributes:
        last_available: index (16 bits) of the next chain that `pop` takes.
        used_index: index (16 bits) of the next used element.
        counts: what the ring counted by itself, added to the queue's counters.
    """

    @property
    def last_available(self) -> int: ...
    @property
    def used_index(self) -> int: ...
    @property
    def counts(self) -> Mapping[str, int]: ...

    def pop(self, in_flight: Container[int] = ()) -> Chain | None: ...
    def unpop(self, head: int) -> None: ...
    def fetch(self, head: int) -> Chain: ...
    def push(self, head: int, written: int) -> None: ...
    def publish(self) -> None: ...
    def needs_interrupt(self) -> bool: ...
    def enable_kicks(self) -> bool: ...
    def disable_kicks(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...


class SplitRing:
    """Descriptor table, available ring and used ring in guest memory.

    Args:
        size: number of descriptors, a power of two.
        descriptors, available, used: where the three areas are.
        event_idx: EVENT_IDX was negotiated.
        indirect: INDIRECT_DESC was negotiated.
        chain_limit: descriptors of an indirect table at most (2.7.5.3.1); by default `size`.
        last_available: where to go on.
        used_index: likewise; by default what the used ring says.

    Raises:
        BrokenRing: what the arguments say of the rings can't be.
    """

    def __init__(
        self,
        dma: DmaSpace,
        size: int,
        descriptors: int,
        available: int,
        used: int,
        *,
        event_idx: bool = False,
        indirect: bool = False,
        chain_limit: int | None = None,
        last_available: int = 0,
        used_index: int | None = None,
    ) -> None:
        _check(size, descriptors, available, used)
        self.dma = dma
        self.size = size
        self.descriptors = descriptors
        self.available = available
        self.used = used
        self.event_idx = event_idx
        self.indirect = indirect
        self.chain_limit = size if chain_limit is None else max(size, chain_limit)
        self.last_available = last_available
        self.used_index = self._load(used + 2) if used_index is None else used_index
        self._available_seen = last_available
        self._published = self.used_index
        self._signalled: int | None = None
        """Used index at the last decision about an interrupt; None: nothing is known of the driver's wish."""
        self._kicks_disabled: bool | None = None
        """None: not known. Who served the ring before may have died with its kicks disabled."""

    # A ring that has a thread of its own does something here.

    counts: Mapping[str, int] = MappingProxyType({})

    def pause(self) -> None:
        """Serve nothing until `resume`."""

    def resume(self) -> None:
        """Go on after `pause`."""

    def close(self) -> None:
        """The queue does not run any more."""

    # Memory. A fault in the rings breaks the queue.

    def _read(self, address: int, length: int) -> bytes:
        try:
            return self.dma.read(address, length)
        except DmaFault as fault:
            raise BrokenRing.in_ring(fault) from None

    def _write(self, address: int, data: bytes) -> None:
        try:
            self.dma.write(address, data)
        except DmaFault as fault:
            raise BrokenRing.in_ring(fault) from None

    def _load(self, address: int) -> int:
        try:
            return self.dma.load16(address)
        except DmaFault as fault:
            raise BrokenRing.in_ring(fault) from None

    def _store(self, address: int, value: int) -> None:
        try:
            self.dma.store16(address, value & 0xFFFF)
        except DmaFault as fault:
            raise BrokenRing.in_ring(fault) from None

    # Available ring (2.7.6).

    def pending(self) -> int:
        """Chains that the driver made available and `pop` has not taken."""
        self._available_seen = self._load(self.available + 2)
        fence()  # the ring's entries are read after the index that covers them (2.7.13.3)
        count = (self._available_seen - self.last_available) & 0xFFFF
        if count > self.size:
            raise BrokenRing(RingRejection.AVAILABLE_OVERRUN)
        return count

    def pop(self, in_flight: Container[int] = ()) -> Chain | None:
        """Take the next chain, None when there is none. One that breaks a rule is not taken: whoever serves
        the ring next finds it wrong, too.

        Args:
            in_flight: heads of chains that may not come again yet.
        """
        if self._available_seen == self.last_available and not self.pending():
            return None
        head = self._load(self.available + 4 + 2 * (self.last_available % self.size))
        if head in in_flight:
            raise BrokenRing(RingRejection.HEAD_IN_FLIGHT)
        chain = self.fetch(head)
        self.last_available = (self.last_available + 1) & 0xFFFF
        return chain

    def unpop(self, head: int) -> None:
        """The chain that was taken last is available again, as if it had not been taken."""
        self.last_available = (self.last_available - 1) & 0xFFFF

    def go_on(self, last_available: int) -> None:
        """Compiled code took chains; the next `pop` looks at what is available now."""
        self.last_available = self._available_seen = last_available

    @property
    def available_seen(self) -> int:
        """The available ring's index as it was seen last."""
        return self._available_seen

    # Descriptors (2.7.5).

    def fetch(self, head: int) -> Chain:
        """The chain that starts at descriptor `head`."""
        if head >= self.size:
            raise BrokenRing(RingRejection.HEAD_OUT_OF_RANGE)
        walk = _Walk(head)
        index = head
        for _ in range(self.size):
            address, length, flags, following = self._descriptor(self.descriptors, index)
            if flags & DescriptorFlag.INDIRECT:
                self._fetch_indirect(walk, address, length, flags)
                return walk.chain()
            walk.add(address, length, flags)
            if not flags & DescriptorFlag.NEXT:
                return walk.chain()
            if following >= self.size:
                raise BrokenRing(RingRejection.NEXT_OUT_OF_RANGE)
            index = following
        raise BrokenRing(RingRejection.LOOP)

    def _descriptor(self, table: int, index: int) -> tuple[int, int, int, int]:
        return DESCRIPTOR.unpack(self._read(table + DESCRIPTOR.size * index, DESCRIPTOR.size))

    def _fetch_indirect(self, walk: _Walk, table: int, length: int, flags: int) -> None:
        """Indirect descriptors (2.7.5.3). The WRITE flag of the one that refers to them means nothing."""
        if not self.indirect:
            raise BrokenRing(RingRejection.INDIRECT_NOT_NEGOTIATED)
        if flags & DescriptorFlag.NEXT:
            raise BrokenRing(RingRejection.INDIRECT_NEXT)
        count, rest = divmod(length, DESCRIPTOR.size)
        if rest or not count:
            raise BrokenRing(RingRejection.INDIRECT_LENGTH)
        allowed, index = self.chain_limit - walk.count, 0
        for _ in range(min(count, allowed)):
            address, n, flags, following = self._indirect_descriptor(table, index)
            if flags & DescriptorFlag.INDIRECT:
                raise BrokenRing(RingRejection.INDIRECT_NESTED)
            walk.add(address, n, flags)
            if not flags & DescriptorFlag.NEXT:
                return
            if following >= count:
                raise BrokenRing(RingRejection.NEXT_OUT_OF_RANGE)
            index = following
        raise BrokenRing(RingRejection.LOOP if count <= allowed else RingRejection.CHAIN_TOO_LONG)

    def _indirect_descriptor(self, table: int, index: int) -> tuple[int, int, int, int]:
        try:
            return DESCRIPTOR.unpack(self.dma.read(table + DESCRIPTOR.size * index, DESCRIPTOR.size))
        except DmaFault as fault:
            off = fault.reason is FaultReason.BUS_MASTER_OFF
            reason = RingRejection.BUS_MASTER_OFF if off else RingRejection.INDIRECT_UNREACHABLE
            raise BrokenRing(reason) from None

    # Used ring (2.7.8).

    def push(self, head: int, written: int) -> None:
        """Give a chain back; the driver does not see it before `publish`."""
        place = self.used + 4 + _USED_ELEMENT.size * (self.used_index % self.size)
        self._write(place, _USED_ELEMENT.pack(head, min(written, _LENGTH_LIMIT)))
        self.used_index = (self.used_index + 1) & 0xFFFF

    @property
    def unpublished(self) -> bool:
        """Whether chains were given back that the driver can't see yet."""
        return self._published != self.used_index

    def publish(self) -> None:
        """Let the driver see what was given back."""
        if self.unpublished:
            fence()  # elements before the index that covers them (2.7.8.2)
            self._store(self.used + 2, self.used_index)
            self._published = self.used_index

    def needs_interrupt(self) -> bool:
        """Whether the driver wants to be told of what was published since the last call (2.7.7)."""
        before, self._signalled = self._signalled, self._published
        if before == self._published:
            return False
        fence()  # the index before the driver's wish is read, else both sides may go to sleep (2.7.14)
        if not self.event_idx:
            return not self._load(self.available) & AVAIL_F_NO_INTERRUPT
        event = self._load(self.available + 4 + 2 * self.size)
        if before is None:
            return True
        return (self._published - event - 1) & 0xFFFF < (self._published - before) & 0xFFFF

    # Kicks (2.7.10).

    def enable_kicks(self) -> bool:
        """Ask to be told of the next chain. True: there is one already, which no kick may announce."""
        if self.event_idx:
            self._store(self.used + 4 + _USED_ELEMENT.size * self.size, self.last_available)
        elif self._kicks_disabled is not False:
            self._store(self.used, 0)
        self._kicks_disabled = False
        fence()
        return self.pending() > 0

    def disable_kicks(self) -> None:
        """Kicks are not needed. With EVENT_IDX the event index that was left behind says so by itself."""
        if not self.event_idx and self._kicks_disabled is not True:
            self._store(self.used, USED_F_NO_NOTIFY)
        self._kicks_disabled = True


class _Walk:
    """A chain while its descriptors are read."""

    __slots__ = ("count", "head", "readable", "total", "writable")

    def __init__(self, head: int) -> None:
        self.head = head
        self.readable: list[Piece] = []
        self.writable: list[Piece] = []
        self.total = 0
        self.count = 0

    def add(self, address: int, length: int, flags: int) -> None:
        """Add a descriptor's memory. Readable comes before writable (2.7.4.2)."""
        self.count += 1
        if flags & DescriptorFlag.WRITE:
            pieces = self.writable
        elif self.writable:
            raise BrokenRing(RingRejection.READABLE_AFTER_WRITABLE)
        else:
            pieces = self.readable
        if not length:
            return
        self.total += length
        if self.total > MAX_CHAIN_BYTES:
            raise BrokenRing(RingRejection.LENGTH_OVERFLOW)
        if address + length > _ADDRESS_SPACE:
            raise BrokenRing(RingRejection.BUFFER_OUT_OF_RANGE)
        pieces.append((address, length))

    def chain(self) -> Chain:
        """The whole chain."""
        return Chain(self.head, self.readable, self.writable)


def _check(size: int, descriptors: int, available: int, used: int) -> None:
    """Size and alignment of the areas (2.7)."""
    if not 0 < size <= MAX_SIZE or size & (size - 1):
        raise BrokenRing(RingRejection.SIZE)
    if descriptors % 16 or available % 2 or used % 4:
        raise BrokenRing(RingRejection.UNALIGNED)
    ends = (
        descriptors + DESCRIPTOR.size * size,
        available + 6 + 2 * size,
        used + 6 + _USED_ELEMENT.size * size,
    )
    if max(ends) > _ADDRESS_SPACE:
        raise BrokenRing(RingRejection.RING_ADDRESS)
