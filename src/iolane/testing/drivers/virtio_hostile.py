"""A driver that breaks the rules of virtqueues on purpose, one named rule at a time, or at random.

It knows no transport and no data plane: it writes rings into memory and says what must come of them.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import NamedTuple

from iolane.model.dma import DmaSpace, Permission
from iolane.model.virtio.rejection import RingRejection
from iolane.testing.drivers.virtio import DESCRIPTOR, DriverMemory
from iolane.uapi.virtio import DescriptorFlag

PAGE = 4096
NEXT, WRITE, INDIRECT = (int(flag) for flag in DescriptorFlag)
GUARD = 0xA5
START = 0x10_0000
PAGES = 16
"""Pages for rings and buffers; then one read-only, one write-only, then nothing."""
READ_ONLY = START + PAGES * PAGE
WRITE_ONLY = READ_ONLY + PAGE
NOTHING = WRITE_ONLY + PAGE
SIZE = 16
"""Descriptors of the queue."""


class HostileMemory:
    """Guest memory with guard areas around it and pages that may only be read or only be written.

    Args:
        view: at least `BYTES` bytes; the guards are in its first and last page.
    """

    BYTES = (PAGES + 4) * PAGE

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.inside = view[PAGE : PAGE + PAGES * PAGE]
        self.forbidden = [
            view[:PAGE],
            view[(PAGES + 1) * PAGE : (PAGES + 2) * PAGE],
            view[self.BYTES - PAGE :],
        ]
        for area in self.forbidden:
            area[:] = bytes([GUARD]) * len(area)

    def map(self, dma: DmaSpace) -> None:
        """Let a device reach what a guest would give it."""
        dma.map(START, PAGES * PAGE, buffer=self.view, offset=PAGE)
        place = (PAGES + 1) * PAGE
        dma.map(READ_ONLY, PAGE, buffer=self.view, offset=place, permission=Permission.READ)
        dma.map(WRITE_ONLY, PAGE, buffer=self.view, offset=place + PAGE, permission=Permission.WRITE)

    def check(self) -> None:
        """Raise AssertionError if a byte changed that no device may change."""
        for area in self.forbidden:
            assert bytes(area).count(GUARD) == len(area), "a byte outside of what may be written has changed"


class HostileRing(NamedTuple):
    """A queue for the device: start it, kick it, and compare.

    Attributes:
        expected: what must break it; None: whatever comes of it is fine.
        indirect: whether the feature is to be negotiated.
    """

    name: str
    size: int
    descriptors: int
    available: int
    used: int
    expected: RingRejection | None
    indirect: bool = True
    dma_enabled: bool = True


class HostileDriver:
    """Makes rings of block requests: good ones, then a wrong one.

    Args:
        memory: where the rings are written.
        seed: the same seed, the same rings.
        capacity: sectors of the disk.
    """

    def __init__(self, memory: HostileMemory, seed: int, *, capacity: int = 16) -> None:
        self.memory = memory
        self.chance = random.Random(seed)
        self.capacity = capacity
        self._heap = DriverMemory(memory.inside, START)
        self._places = (0, 0, 0)
        self._count = 0
        self._next = 0
        self._single: dict[str, tuple[RingRejection, Callable[[], None]]] = {
            "overrun": (RingRejection.AVAILABLE_OVERRUN, self._overrun),
            "head": (
                RingRejection.HEAD_OUT_OF_RANGE,
                lambda: self._offer(self.chance.randrange(SIZE, 65536)),
            ),
            "twice": (RingRejection.HEAD_IN_FLIGHT, self._twice),
            "next": (RingRejection.NEXT_OUT_OF_RANGE, self._next_out),
            "loop": (RingRejection.LOOP, self._loop),
            "long": (RingRejection.CHAIN_TOO_LONG, self._long),
            "order": (RingRejection.READABLE_AFTER_WRITABLE, self._order),
            "length": (RingRejection.LENGTH_OVERFLOW, self._length),
            "nested": (RingRejection.INDIRECT_NESTED, lambda: self._table([(START, 16, INDIRECT, 0)])),
            "table loop": (RingRejection.LOOP, lambda: self._table([(START, 16, NEXT, 0)])),
            "table next": (RingRejection.NEXT_OUT_OF_RANGE, lambda: self._table([(START, 16, NEXT, 7)])),
            "indirect next": (RingRejection.INDIRECT_NEXT, self._indirect_next),
            "indirect length": (RingRejection.INDIRECT_LENGTH, self._indirect_length),
            "indirect nowhere": (RingRejection.INDIRECT_UNREACHABLE, self._indirect_nowhere),
            "unmapped": (RingRejection.BUFFER_UNMAPPED, lambda: self._buffer(NOTHING + PAGE, write=True)),
            "unmapped header": (RingRejection.BUFFER_UNMAPPED, lambda: self._header(NOTHING)),
            "read-only": (RingRejection.BUFFER_READ_ONLY, lambda: self._buffer(READ_ONLY, write=True)),
            "write-only": (RingRejection.BUFFER_WRITE_ONLY, lambda: self._buffer(WRITE_ONLY, write=False)),
            "past the end": (RingRejection.BUFFER_OUT_OF_RANGE, self._past_the_end),
            "2 ** 64": (RingRejection.BUFFER_OUT_OF_RANGE, lambda: self._buffer(2**64 - 16, write=True)),
            "no header": (
                RingRejection.MALFORMED_REQUEST,
                lambda: self._chain([(START, 15, 0), (START, 1, WRITE)]),
            ),
            "no status": (RingRejection.MALFORMED_REQUEST, lambda: self._chain([(START, 16, 0)])),
        }
        self._whole: dict[str, Callable[[], HostileRing]] = {
            "size": self._wrong_size,
            "alignment": self._unaligned,
            "address": self._address,
            "ring nowhere": self._ring_nowhere,
            "ring read-only": self._ring_read_only,
            "not negotiated": self._not_negotiated,
            "bus master": self._bus_master,
            "random": self._random,
            "good": lambda: self._ring("good", None),
        }

    @property
    def names(self) -> list[str]:
        """Every way to be wrong, `random`, and `good`."""
        return [*self._single, *self._whole]

    def make(self, name: str) -> HostileRing:
        """A ring that is wrong in this way, after some good requests."""
        self._build()
        if name in self._whole:
            return self._whole[name]()
        expected, change = self._single[name]
        change()
        return self._ring(name, expected)

    def _ring(self, name: str, expected: RingRejection | None) -> HostileRing:
        return HostileRing(name, SIZE, *self._places, expected)

    # Good requests.

    def _build(self) -> None:
        self.memory.inside[:] = bytes(len(self.memory.inside))
        self._heap = DriverMemory(self.memory.inside, START)
        heap = self._heap
        self._places = (
            heap.allocate(16 * SIZE),
            heap.allocate(6 + 2 * SIZE, 2),
            heap.allocate(6 + 8 * SIZE, 4),
        )
        self._count = self._next = 0
        for _ in range(self.chance.randrange(3)):
            self._request(self.chance.random() < 0.5)

    def _request(self, write: bool) -> None:
        address = self._heap.allocate(512)
        self._transfer([(address, 512)], write)

    def _transfer(self, data: list[tuple[int, int]], write: bool) -> None:
        """A read or write of one sector, its data wherever it is said to be."""
        sector = self.chance.randrange(self.capacity)
        header = self._put(struct.pack("<IIQ", int(write), 0, sector))
        pieces = [(header, 16, 0), *((at, n, 0 if write else WRITE) for at, n in data)]
        self._chain([*pieces, (self._heap.allocate(1), 1, WRITE)])

    def _put(self, data: bytes) -> int:
        address = self._heap.allocate(len(data))
        self._heap.write(address, data)
        return address

    def _chain(self, pieces: list[tuple[int, int, int]]) -> None:
        head = self._next
        self._next += len(pieces)
        for place, (address, length, flags) in enumerate(pieces):
            last = place + 1 == len(pieces)
            self._descriptor(head + place, (address, length, flags | (0 if last else NEXT), head + place + 1))
        self._offer(head)

    def _descriptor(self, index: int, descriptor: tuple[int, int, int, int]) -> None:
        self._heap.write(self._places[0] + 16 * index, DESCRIPTOR.pack(*descriptor))

    def _offer(self, head: int) -> None:
        available = self._places[1]
        self._heap.write(available + 4 + 2 * (self._count % SIZE), head.to_bytes(2, "little"))
        self._count += 1
        self._heap.write(available + 2, self._count.to_bytes(2, "little"))

    # Wrong chains.

    def _beyond(self) -> int:
        """The number of a descriptor that there is not."""
        return self.chance.randrange(SIZE, 65536)

    def _overrun(self) -> None:
        wrong = self.chance.randrange(SIZE + 1, 65536)
        self._heap.write(self._places[1] + 2, wrong.to_bytes(2, "little"))

    def _twice(self) -> None:
        """The same descriptors again, while a device that works beside the ring still has them."""
        self._request(False)
        head = int.from_bytes(self._heap.read(self._places[1] + 4 + 2 * (self._count - 1), 2), "little")
        self._offer(head)

    def _next_out(self) -> None:
        self._descriptor(self._next, (START, 16, NEXT, self._beyond()))
        self._offer(self._next)

    def _loop(self) -> None:
        first = self._next
        length = self.chance.randrange(1, SIZE - first)
        for place in range(length):
            self._descriptor(first + place, (START, 16, NEXT, first + (place + 1) % length))
        self._offer(first)

    def _long(self) -> None:
        """Longer than any device here allows: more than 256 descriptors."""
        self._table([(START, 16, NEXT, place + 1) for place in range(300)])

    def _order(self) -> None:
        self._chain([(START, 16, 0), (START, 1, WRITE), (START, 1, 0)])

    def _length(self) -> None:
        self._chain([(START, 2**32 - 1, 0), (START, 2, 0)])

    def _table(self, table: list[tuple[int, int, int, int]]) -> None:
        address = self._put(b"".join(DESCRIPTOR.pack(*descriptor) for descriptor in table))
        self._chain([(address, 16 * len(table), INDIRECT)])

    def _indirect_next(self) -> None:
        self._descriptor(self._next, (START, 16, INDIRECT | NEXT, self._next + 1))
        self._offer(self._next)

    def _indirect_length(self) -> None:
        self._chain([(START, self.chance.choice((0, 1, 15, 17, 2**32 - 1)), INDIRECT)])

    def _indirect_nowhere(self) -> None:
        self._chain([(self.chance.choice((NOTHING, WRITE_ONLY, 0, 2**64 - 16)), 16, INDIRECT)])

    # Wrong buffers.

    def _buffer(self, address: int, *, write: bool) -> None:
        """`write`: it is the device that writes it."""
        length = 16 if address >= 2**64 - 16 else 512
        if length == 16:
            self._chain([(START, 16, 0), (address, 17, WRITE)])
        else:
            self._transfer([(address, 512)], not write)

    def _header(self, address: int, length: int = 16) -> None:
        self._chain([(address, length, 0), (self._heap.allocate(1), 1, WRITE)])

    def _past_the_end(self) -> None:
        self._transfer([(NOTHING - self.chance.randrange(1, 512), 512)], False)

    # Wrong queues.

    def _wrong_size(self) -> HostileRing:
        size = self.chance.choice((0, 3, 12, 257, 32769, 65535))
        return self._ring("size", RingRejection.SIZE)._replace(size=size)

    def _unaligned(self) -> HostileRing:
        descriptors, available, used = self._places
        wrong = self.chance.choice(
            [
                (descriptors + 8, available, used),
                (descriptors, available + 1, used),
                (descriptors, available, used + 2),
            ]
        )
        return HostileRing("alignment", SIZE, *wrong, RingRejection.UNALIGNED)

    def _address(self) -> HostileRing:
        descriptors, available, used = self._places
        wrong = self.chance.choice([(2**64 - 16, available, used), (descriptors, 2**64 - 2, used)])
        return HostileRing("address", SIZE, *wrong, RingRejection.RING_ADDRESS)

    def _ring_nowhere(self) -> HostileRing:
        self._request(False)
        descriptors, available, used = self._places
        wrong = self.chance.choice(
            [(NOTHING, available, used), (descriptors, NOTHING, used), (descriptors, available, NOTHING)]
        )
        return HostileRing("ring nowhere", SIZE, *wrong, RingRejection.RING_UNREACHABLE)

    def _ring_read_only(self) -> HostileRing:
        """A used ring that can be read: the device notices when it gives the first chain back."""
        self._request(False)
        descriptors, available, _ = self._places
        return HostileRing(
            "ring read-only", SIZE, descriptors, available, READ_ONLY, RingRejection.RING_UNREACHABLE
        )

    def _not_negotiated(self) -> HostileRing:
        """A request that would be a good one."""
        header = self._put(struct.pack("<IIQ", 0, 0, self.chance.randrange(self.capacity)))
        data, status = self._heap.allocate(512), self._heap.allocate(1)
        self._table([(header, 16, NEXT, 1), (data, 512, NEXT | WRITE, 2), (status, 1, WRITE, 0)])
        wrong = self._ring("not negotiated", RingRejection.INDIRECT_NOT_NEGOTIATED)
        return wrong._replace(indirect=False)

    def _bus_master(self) -> HostileRing:
        self._request(False)
        return self._ring("bus master", RingRejection.BUS_MASTER_OFF)._replace(dma_enabled=False)

    def _random(self) -> HostileRing:
        """Good requests, then random bytes over descriptors and available ring."""
        for _ in range(self.chance.randrange(1, 3)):
            self._request(self.chance.random() < 0.5)
        for _ in range(self.chance.randrange(1, 6)):
            if self.chance.random() < 0.8:
                at = self._places[0] + self.chance.randrange(16 * self._next)
            else:
                at = self._places[1] + self.chance.randrange(6 + 2 * SIZE)
            self._heap.write(
                at, bytes([self.chance.choice((0, 1, 2, 4, 0x7F, 0xFF, self.chance.randrange(256)))])
            )
        return self._ring("random", None)
