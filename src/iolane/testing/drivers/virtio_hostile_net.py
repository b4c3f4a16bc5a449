"""A driver that breaks the rules of a network device's queues (virtio 1.3, 5.1.6), by name or at random."""

from __future__ import annotations

import random
import struct

from iolane.model.virtio.rejection import RingRejection
from iolane.testing.drivers.virtio_hostile import (
    NEXT,
    NOTHING,
    PAGE,
    READ_ONLY,
    START,
    WRITE,
    WRITE_ONLY,
    HostileDriver,
    HostileMemory,
    HostileRing,
)

HEADER = 12
RUNT = 14
LARGEST = HEADER + 300
"""Bytes of a packet."""


class HostileNetDriver(HostileDriver):
    """Makes rings of packets, or of buffers for packets.

    Args:
        receives: the queue is a receive queue.
    """

    def __init__(self, memory: HostileMemory, seed: int, *, receives: bool) -> None:
        super().__init__(memory, seed)
        self.receives = receives
        self._small = False
        flag = WRITE if receives else 0
        rejection, single = RingRejection, self._single
        for name in ("unmapped header", "no status", "write-only" if receives else "read-only"):
            del single[name]
        single["long"] = (rejection.CHAIN_TOO_LONG, self._very_long)
        single["unmapped"] = (rejection.BUFFER_UNMAPPED, lambda: self._part(NOTHING + PAGE))
        single["unmapped at the end"] = (
            rejection.BUFFER_UNMAPPED,
            lambda: self._chain([(START, 7, flag), (NOTHING, 80, flag)]),
        )
        single["2 ** 64"] = (rejection.BUFFER_OUT_OF_RANGE, lambda: self._part(2**64 - 16))
        single["no header"] = (rejection.MALFORMED_REQUEST, lambda: self._chain([(START, HEADER - 1, flag)]))
        single["wrong way"] = (
            rejection.MALFORMED_REQUEST,
            lambda: self._chain([(START, 80, 0), (START, 80, WRITE)]),
        )
        if receives:
            single["read-only"] = (rejection.BUFFER_READ_ONLY, lambda: self._part(READ_ONLY))
        else:
            single["write-only"] = (rejection.BUFFER_WRITE_ONLY, lambda: self._part(WRITE_ONLY))
            del single["twice"], single["past the end"]

    def make(self, name: str) -> HostileRing:
        """As in the base class. Where the wrong chain is to have a packet of its own, the others hold one."""
        self._small = name == "random"
        return super().make(name)

    # Good ones.

    def _request(self, write: bool) -> None:
        """A packet in up to three pieces, or a buffer."""
        if self.receives:
            rooms = [self.chance.choice((12, 40, 80, 400)) for _ in range(self.chance.randrange(1, 3))]
            rooms = rooms if self._small else [*rooms, LARGEST]
            self._chain([(self._heap.allocate(room), room, WRITE) for room in rooms])
            return
        data = packet(self.chance)
        cut = self.chance.choice((len(data), HEADER, self.chance.randrange(1, 20)))
        parts = [part for part in (data[:cut], data[cut:]) if part]
        self._chain([(self._put(part), len(part), 0) for part in parts])

    # Wrong ones.

    def _part(self, address: int) -> None:
        """A packet, or a buffer, at this place."""
        self._chain([(address, 80, WRITE if self.receives else 0)])

    def _very_long(self) -> None:
        """More than 1024 descriptors."""
        self._table([(START, 1, NEXT, place + 1) for place in range(1100)])

    def _twice(self) -> None:
        """A buffer again, for one packet: nothing is before it, and no packet needs but one."""
        self._count = self._next = 0
        self._chain([(self._heap.allocate(20), 20, WRITE)])
        self._offer(0)

    def _not_negotiated(self) -> HostileRing:
        """It would be a good one."""
        flag = WRITE if self.receives else 0
        header, frame = self._put(bytes(HEADER)), self._put(self.chance.randbytes(60))
        self._table([(header, HEADER, NEXT | flag, 1), (frame, 60, flag, 0)])
        wrong = self._ring("not negotiated", RingRejection.INDIRECT_NOT_NEGOTIATED)
        return wrong._replace(indirect=False)

    def _past_the_end(self) -> None:
        """By all but one byte: whatever comes here is longer."""
        self._chain([(NOTHING - 1, 80, WRITE)])


def packet(chance: random.Random) -> bytes:
    """Header and frame; most headers are plain, most others make sense."""
    length = chance.choice((60, 60, 100, LARGEST - HEADER, RUNT, RUNT - 1, 0))
    if chance.random() < 0.6:
        return bytes(HEADER) + chance.randbytes(length)
    header = struct.pack(
        "<BBHHHHH",
        chance.choice((0, 1, 1, 1, 2, 255)),
        chance.choice((0, 0, 1, 4, 0x81, 3, 0x80)),
        chance.choice((0, 54, 0xFFFF)),
        chance.choice((0, 1448)),
        chance.choice((0, 14, 34, 0xFFFF)),
        chance.choice((6, 16, 0xFFFF)),
        chance.choice((0, 9)),
    )
    return header + chance.randbytes(length)
