"""A block request: header, data, status in one chain, however its descriptors are cut (virtio 1.3, 5.2.6)."""

from __future__ import annotations

import struct

from iolane.devices.virtio.block.config import SECTOR
from iolane.model.dma import DmaSpace
from iolane.model.virtio import BrokenRing, Chain, RingRejection
from iolane.model.virtio.chain import Piece, cut
from iolane.uapi.virtio import BlockStatus

HEADER = struct.Struct("<IIQ")
"""type, reserved, sector"""
SEGMENT = struct.Struct("<QII")
"""struct virtio_blk_discard_write_zeroes: sector, number of sectors, flags"""


class RequestError(Exception):
    """The request can't be done; the driver gets this status."""

    def __init__(self, status: BlockStatus) -> None:
        super().__init__(status.name)
        self.status = status


class Request:
    """One request.

    Attributes:
        kind: which; an int, since it is the driver's.
        sector: where, in units of 512 bytes.
        length: bytes of data that the device writes.
    """

    __slots__ = ("chain", "kind", "length", "sector")

    def __init__(self, chain: Chain, dma: DmaSpace) -> None:
        if chain.readable_length < HEADER.size or not chain.writable_length:
            raise BrokenRing(RingRejection.MALFORMED_REQUEST)
        self.chain = chain
        self.kind, _, self.sector = HEADER.unpack(chain.read(dma, 0, HEADER.size))
        self.length = chain.writable_length - 1

    @property
    def outgoing(self) -> list[Piece]:
        """Memory of the data that the driver sends."""
        return cut(self.chain.readable, HEADER.size, self.outgoing_length)

    @property
    def outgoing_length(self) -> int:
        """Bytes that the driver sends."""
        return self.chain.readable_length - HEADER.size

    @property
    def incoming(self) -> list[Piece]:
        """Memory of the data that the driver gets; the status follows it."""
        return cut(self.chain.writable, 0, self.length)

    def extent(self, length: int, capacity: int) -> int:
        """Offset in bytes of `length` bytes of data. They are whole sectors inside the disk (5.2.6.1)."""
        if length % SECTOR or self.sector + length // SECTOR > capacity:
            raise RequestError(BlockStatus.IOERR)
        return int(self.sector) * SECTOR

    def segments(self, dma: DmaSpace, limit: int) -> list[tuple[int, int, int]]:
        """(sector, number of sectors, flags) of a discard or write zeroes, at most `limit` (5.2.6.1)."""
        if self.outgoing_length % SEGMENT.size or self.outgoing_length > limit * SEGMENT.size:
            raise RequestError(BlockStatus.IOERR)
        data = self.chain.read(dma, HEADER.size, self.outgoing_length)
        return list(SEGMENT.iter_unpack(data))

    def finish(self, dma: DmaSpace, status: BlockStatus) -> int:
        """Write the status. Returns how much was written from the start on (2.7.8.2): of a request that
        failed before its data was there, nothing.
        """
        self.chain.write(dma, bytes((status,)), self.length)
        return self.length + 1 if status is BlockStatus.OK or not self.length else 0
