"""What is in flight, in memory that outlives this process ("Inflight I/O tracking", split virtqueues).

The front end keeps the memory. A back end that finds entries in it does those chains again, in the order
in which they were taken: what a dead one had taken and not given back.
"""

from __future__ import annotations

import fcntl
import os
from struct import Struct
from typing import NamedTuple

from iolane.carriers.vhost_user.protocol import INFLIGHT
from iolane.carriers.vhost_user.rejection import RefusedError, Rejection
from iolane.carriers.vhost_user.wire import Message
from iolane.errors import IolaneError
from iolane.memory.mapping import Mapping

HEADER = Struct("<QHHHH")
"""QueueRegionSplit: features, version, desc_num, last_batch_head, used_idx."""
ENTRY = Struct("<B5xHQ")
"""DescStateSplit: inflight, next, counter."""
VERSION = 1
ALIGNMENT = 64
LARGEST_QUEUE = 32768

_VERSION_AT = 8 // 2
_LAST_BATCH_HEAD_AT = 12 // 2
_USED_INDEX_AT = 14 // 2
_NEXT_AT = 6 // 2
_COUNTER_AT = 8 // 8


def queue_area(size: int) -> int:
    """Bytes for a queue of `size` descriptors."""
    return -(-(HEADER.size + ENTRY.size * size) // ALIGNMENT) * ALIGNMENT


class Shape(NamedTuple):
    """The payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD."""

    mmap_size: int
    mmap_offset: int
    queues: int
    queue_size: int


def parse(message: Message, queues: int) -> Shape:
    """What the front end wants tracked, or brings back."""
    shape = Shape(*message.unpack(INFLIGHT, exact=False))
    if not 0 < shape.queues <= queues or not 0 < shape.queue_size <= LARGEST_QUEUE:
        raise RefusedError(
            Rejection.INFLIGHT_SHAPE, f"{shape.queues} of {queues} queues of {shape.queue_size}"
        )
    return shape


def make_area(shape: Shape) -> tuple[int, Shape]:
    """A new area, in a file that nobody can shorten: its descriptor and its shape."""
    size = shape.queues * queue_area(shape.queue_size)
    fd = os.memfd_create("iolane-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        _seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd, Shape(size, 0, shape.queues, shape.queue_size)


def _seal(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)


class InflightArea:
    """The whole area, mapped."""

    def __init__(self, fd: int, shape: Shape) -> None:
        needed = shape.queues * queue_area(shape.queue_size)
        if shape.mmap_size < needed or shape.mmap_offset + needed > 1 << 62:
            raise RefusedError(Rejection.INFLIGHT_FILE, f"{shape.mmap_size} bytes, {needed} are needed")
        skip = shape.mmap_offset % os.sysconf("SC_PAGE_SIZE")
        try:
            self.mapping = Mapping(fd, skip + needed, shape.mmap_offset - skip)
        except (IolaneError, OSError) as error:
            raise RefusedError(Rejection.INFLIGHT_FILE, str(error)) from None
        self.shape = shape
        self._start = skip
        self._view = memoryview(self.mapping)

    def queue(self, index: int) -> InflightQueue | None:
        """The part of one queue; None past the number of queues that are tracked."""
        if index >= self.shape.queues:
            return None
        size = queue_area(self.shape.queue_size)
        start = self._start + index * size
        return InflightQueue(
            self._view[start : start + size], self.shape.queue_size, self.mapping.address + start
        )

    def close(self) -> None:
        """Unmap it, once the queues' views are gone."""
        self._view.release()
        self.mapping.close()


class Recovery(NamedTuple):
    """Where a queue goes on.

    Attributes:
        last_available: index of the next chain to take.
        heads: chains to be done first, in order.
    """

    last_available: int
    heads: list[int]


class InflightQueue:
    """One queue's part: which chains are in flight, and which were given back last.

    Every value in it may be anything: the front end can write it, too.

    Attributes:
        size: descriptors that it has room for.
        address: where it lies in this process, for compiled code.
    """

    def __init__(self, view: memoryview, size: int, address: int = 0) -> None:
        self.size = size
        self.address = address
        self._view = view
        self._u16 = view.cast("H")
        """Where a value is stored at once: a back end may be killed at any instruction. (`struct.pack_into`
        makes what it packs zero first.)
        """
        self._u64 = view.cast("Q")
        self._batch: list[int] = []
        self._counter = 0

    def recover(self, used_index: int, ring_size: int, base: int) -> Recovery:
        """Bring the area into line with the used ring ("When reconnecting"), and say what is in flight.

        Args:
            used_index: what the used ring says.
            base: where to go on, from SET_VRING_BASE, if the area was never used.
        """
        _, version, _, last_batch_head, tracked_index = HEADER.unpack_from(self._view)
        if version != VERSION:
            self._initialize(used_index)
            return Recovery(base, [])
        batch = (used_index - tracked_index) & 0xFFFF
        self._finish_batch(last_batch_head, min(batch, self.size))
        self._u16[_USED_INDEX_AT] = used_index
        found = []
        for head in range(min(self.size, ring_size)):
            in_flight, _, counter = ENTRY.unpack_from(self._view, self._entry(head))
            if in_flight == 1:
                found.append((counter, head))
        found.sort()
        self._counter = found[-1][0] + 1 & (1 << 64) - 1 if found else 0
        return Recovery((used_index + len(found)) & 0xFFFF, [head for _, head in found])

    def _initialize(self, used_index: int) -> None:
        """The version comes last: it says that the rest is there."""
        self._view[:] = bytes(len(self._view))
        self._view[: HEADER.size] = HEADER.pack(0, 0, self.size, 0, used_index)
        self._u16[_VERSION_AT] = VERSION

    def _finish_batch(self, head: int, count: int) -> None:
        """The last batch became visible, but its entries may not have been cleared."""
        for _ in range(count):
            if head >= self.size:
                return
            self._view[self._entry(head)] = 0
            head = self._u16[self._entry(head) // 2 + _NEXT_AT]

    def _entry(self, head: int) -> int:
        return HEADER.size + ENTRY.size * head

    def take(self, head: int) -> None:
        """A chain was taken from the available ring. The entry's order is written before it counts."""
        if head < self.size:
            at = self._entry(head)
            self._u64[at // 8 + _COUNTER_AT] = self._counter
            self._view[at] = 1
            self._counter = (self._counter + 1) & (1 << 64) - 1

    def untake(self, head: int) -> None:
        """The chain that was taken last is available again."""
        if head < self.size:
            self._view[self._entry(head)] = 0

    def give_back(self, head: int) -> None:
        """A chain was put into the used ring, where the driver can't see it yet."""
        if head < self.size:
            self._u16[self._entry(head) // 2 + _NEXT_AT] = self._u16[_LAST_BATCH_HEAD_AT]
            self._u16[_LAST_BATCH_HEAD_AT] = head
            self._batch.append(head)

    def published(self, used_index: int) -> None:
        """The driver can see everything that was given back."""
        for head in self._batch:
            self._view[self._entry(head)] = 0
        self._batch.clear()
        self._u16[_USED_INDEX_AT] = used_index
