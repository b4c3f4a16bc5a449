"""A descriptor chain: one buffer that the driver offered (virtio 1.3, 2.7.4)."""

from __future__ import annotations

from collections.abc import Sequence

from iolane.model.dma import DmaSpace

Piece = tuple[int, int]
"""IOVA and length of contiguous memory."""


class Chain:
    """The memory of one buffer: what the device reads, then what it writes.

    Attributes:
        head: the descriptor it starts with, its name in the rings.
        readable, writable: pieces in order; none is empty.
    """

    __slots__ = ("head", "readable", "readable_length", "writable", "writable_length")

    def __init__(self, head: int, readable: Sequence[Piece], writable: Sequence[Piece]) -> None:
        self.head = head
        self.readable = tuple(readable)
        self.writable = tuple(writable)
        self.readable_length = sum(length for _, length in readable)
        self.writable_length = sum(length for _, length in writable)

    def read(self, dma: DmaSpace, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of the readable part; fewer than `length` where it ends. Raises DmaFault."""
        wanted = self.readable_length if length is None else length
        return b"".join(dma.read(iova, n) for iova, n in cut(self.readable, offset, wanted))

    def write(self, dma: DmaSpace, data: bytes | bytearray | memoryview, offset: int = 0) -> int:
        """Put `data` into the writable part at `offset`; returns how much of it fits. Raises DmaFault."""
        view, done = memoryview(data), 0
        for iova, n in cut(self.writable, offset, len(view)):
            dma.write(iova, view[done : done + n])
            done += n
        return done

    def __repr__(self) -> str:
        return f"<Chain {self.head}: {self.readable_length} to read, {self.writable_length} to write>"


def cut(pieces: Sequence[Piece], offset: int, length: int) -> list[Piece]:
    """The part of the pieces that lies in [offset, offset + length); what is past their end is left out."""
    found = []
    for iova, n in pieces:
        if offset >= n:
            offset -= n
            continue
        count = min(n - offset, length)
        if count <= 0:
            break
        found.append((iova + offset, count))
        length -= count
        offset = 0
    return found
