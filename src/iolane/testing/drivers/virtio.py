"""The driver's side of split virtqueues (virtio 1.3, 2.7), over any memory that the device sees as well.

It knows no transport: whoever uses it tells the device where the rings are, and how to kick.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from iolane.memory.fence import fence
from iolane.uapi.virtio import AVAIL_F_NO_INTERRUPT, USED_F_NO_NOTIFY, DescriptorFlag

DESCRIPTOR = struct.Struct("<QIHH")
_U16 = struct.Struct("<H")
Piece = tuple[int, int]


class DriverMemory:
    """Memory that the device reaches at `start`, given out piece by piece.

    Args:
        view: the memory.
        start: address of its first byte, as the device knows it.
    """

    def __init__(self, view: memoryview, start: int) -> None:
        self.view = view
        self.start = start
        self._free: list[Piece] = [(0, len(view))]

    def read(self, address: int, length: int) -> bytes:
        """Bytes at an address."""
        at = address - self.start
        return bytes(self.view[at : at + length])

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Put bytes at an address."""
        at = address - self.start
        self.view[at : at + len(data)] = data

    def load16(self, address: int) -> int:
        """A 16-bit number that the device may change meanwhile, at once (see `DmaSpace.load16`)."""
        value: int = _U16.unpack_from(self.view, address - self.start)[0]
        return value

    def store16(self, address: int, value: int) -> None:
        """A 16-bit number that the device reads whenever it likes, at once."""
        at = address - self.start
        self.view[at : at + 2].cast("H")[0] = value

    def allocate(self, length: int, align: int = 16) -> int:
        """The address of `length` zeroed bytes. Raises MemoryError when there is no such room."""
        size = -(-max(length, 1) // 16) * 16
        for place, (offset, room) in enumerate(self._free):
            skip = -(self.start + offset) % align
            if room >= skip + size:
                left = [(offset, skip), (offset + skip + size, room - skip - size)]
                self._free[place : place + 1] = [piece for piece in left if piece[1]]
                self.view[offset + skip : offset + skip + length] = bytes(length)
                return self.start + offset + skip
        raise MemoryError(f"no room for {length} bytes in the driver's memory")

    def free(self, address: int, length: int) -> None:
        """Give back what `allocate` gave."""
        self._free.append((address - self.start, -(-max(length, 1) // 16) * 16))
        self._free.sort()
        joined: list[Piece] = []
        for offset, size in self._free:
            if joined and joined[-1][0] + joined[-1][1] == offset:
                joined[-1] = (joined[-1][0], joined[-1][1] + size)
            else:
                joined.append((offset, size))
        self._free = joined


class Used(NamedTuple):
    """A chain that the device gave back."""

    head: int
    written: int
    data: bytes
    """What the writable part holds, `written` bytes of it."""


class _Added(NamedTuple):
    descriptors: list[int]
    writable: list[Piece]
    owned: list[Piece]
    """Memory to be freed with the chain."""


class DriverRing:
    """One virtqueue.

    Args:
        memory: where rings and buffers are put.
        size: number of descriptors.
        kick: tells the device of available chains.
        event_idx, indirect: what was negotiated.
    """

    def __init__(
        self,
        memory: DriverMemory,
        size: int,
        kick: Callable[[], None],
        *,
        event_idx: bool = False,
        indirect: bool = False,
    ) -> None:
        self.memory = memory
        self.size = size
        self.event_idx = event_idx
        self.indirect = indirect
        self.kicks = 0
        self._kick = kick
        self.descriptors = memory.allocate(16 * size, 16)
        self.available = memory.allocate(6 + 2 * size, 2)
        self.used = memory.allocate(6 + 8 * size, 4)
        self.available_index = 0
        self.used_seen = 0
        self._announced = 0
        self._free = list(range(size))
        self._added: dict[int, _Added] = {}

    # Offering (2.7.13).

    def add(self, readable: Sequence[Piece], writable: Sequence[Piece], *, indirect: bool = False) -> int:
        """Make a chain of memory of the caller's available; returns its head. The device is not told yet."""
        return self._add(readable, writable, [], indirect)

    def send(
        self, data: bytes | Sequence[bytes], room: int | Sequence[int] = 0, *, indirect: bool = False
    ) -> int:
        """Like `add`, with memory made for it: `data` to read, `room` bytes to write; either in pieces."""
        parts = [data] if isinstance(data, bytes) else list(data)
        rooms = [room] if isinstance(room, int) else list(room)
        readable = [(self.memory.allocate(len(part)), len(part)) for part in parts if part]
        for (address, _), part in zip(readable, [part for part in parts if part], strict=True):
            self.memory.write(address, part)
        writable = [(self.memory.allocate(length), length) for length in rooms if length]
        return self._add(readable, writable, [*readable, *writable], indirect)

    def _add(
        self, readable: Sequence[Piece], writable: Sequence[Piece], owned: list[Piece], indirect: bool
    ) -> int:
        pieces = [(address, n, 0) for address, n in readable]
        pieces += [(address, n, int(DescriptorFlag.WRITE)) for address, n in writable]
        if not pieces:
            raise ValueError("a chain has at least one descriptor (2.7.13.1)")
        if indirect:
            table = self.memory.allocate(16 * len(pieces))
            self.write_table(table, list(range(len(pieces))), pieces)
            owned = [*owned, (table, 16 * len(pieces))]
            pieces = [(table, 16 * len(pieces), int(DescriptorFlag.INDIRECT))]
        if len(pieces) > len(self._free):
            raise MemoryError(f"the queue has {len(self._free)} free descriptors, the chain {len(pieces)}")
        indices = [self._free.pop(0) for _ in pieces]
        self.write_table(self.descriptors, indices, pieces)
        self._added[indices[0]] = _Added(indices, list(writable), owned)
        self.offer(indices[0])
        return indices[0]

    def write_table(self, table: int, indices: Sequence[int], pieces: Sequence[tuple[int, int, int]]) -> None:
        """Chain (address, length, flags) in a descriptor table."""
        for place, (index, (address, length, flags)) in enumerate(zip(indices, pieces, strict=True)):
            following = indices[place + 1] if place + 1 < len(indices) else 0
            more = int(DescriptorFlag.NEXT) if place + 1 < len(indices) else 0
            self.memory.write(table + 16 * index, DESCRIPTOR.pack(address, length, flags | more, following))

    def offer(self, head: int) -> None:
        """Put a head into the available ring, whatever it is."""
        place = self.available + 4 + 2 * (self.available_index % self.size)
        self.memory.write(place, head.to_bytes(2, "little"))
        self.available_index = (self.available_index + 1) & 0xFFFF
        fence()
        self.memory.store16(self.available + 2, self.available_index)

    def kick(self) -> bool:
        """Tell the device, if it wants to know (2.7.10). True if it did."""
        fence()
        before, self._announced = self._announced, self.available_index
        if self.event_idx:
            event = self._u16(self.used + 4 + 8 * self.size)
            wanted = (self.available_index - event - 1) & 0xFFFF < (self.available_index - before) & 0xFFFF
        else:
            wanted = not self._u16(self.used) & USED_F_NO_NOTIFY
        if wanted:
            self.kicks += 1
            self._kick()
        return wanted

    # Taking back (2.7.14).

    def collect(self) -> list[Used]:
        """What the device gave back since the last call; descriptors and memory are free again."""
        found: list[Used] = []
        while (index := self._u16(self.used + 2)) != self.used_seen:
            fence()
            while self.used_seen != index:
                place = self.used + 4 + 8 * (self.used_seen % self.size)
                head, written = struct.unpack("<II", self.memory.read(place, 8))
                self.used_seen = (self.used_seen + 1) & 0xFFFF
                found.append(self._taken(head, written))
            if self.event_idx:
                self.ask_interrupt(self.used_seen)
                fence()  # then look again: what came in between interrupts nobody (2.7.14)
        return found

    def _taken(self, head: int, written: int) -> Used:
        added = self._added.pop(head)
        assert written <= sum(length for _, length in added.writable), "more written than there is room"
        data = b"".join(self.memory.read(address, length) for address, length in added.writable)
        for address, length in added.owned:
            self.memory.free(address, length)
        self._free += added.descriptors
        return Used(head, written, data[:written])

    @property
    def outstanding(self) -> int:
        """Chains that the device has not given back."""
        return len(self._added)

    # Interrupts (2.7.7).

    def ask_interrupt(self, index: int) -> None:
        """used_event: interrupt when the used index passes this."""
        self.memory.store16(self.available + 4 + 2 * self.size, index & 0xFFFF)

    def suppress_interrupts(self, suppress: bool = True) -> None:
        """The flag of a driver without EVENT_IDX."""
        self.memory.write(self.available, (AVAIL_F_NO_INTERRUPT if suppress else 0).to_bytes(2, "little"))

    def _u16(self, address: int) -> int:
        return self.memory.load16(address)
