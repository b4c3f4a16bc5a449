"""Which pages a device has written: the log that VFIO's DMA logging feature reports to a migration."""

from __future__ import annotations

from collections.abc import Sequence

from iolane.errors import IolaneError
from iolane.memory.bitmap import DirtyBitmap

SPACE = 1 << 64
CHUNK_PAGES = 32768
"""Pages in one bitmap: 4 KiB of bits."""
CHUNK_LIMIT = 16384
"""Bitmaps at most, 64 MiB. Of a guest that dirties more, every page is reported as dirty."""


class DirtyLog:
    """Dirty pages of any part of the address space; bitmaps are made where something is written.

    Args:
        ranges: (iova, size) to log; none means everything (VFIO_DEVICE_FEATURE_DMA_LOGGING_START).
        page_size: bytes that one bit stands for.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]], page_size: int) -> None:
        if page_size < 512 or page_size > 1 << 30 or page_size & (page_size - 1):
            raise IolaneError(f"dirty log page size {page_size} is no power of two from 512")
        for iova, size in ranges:
            if iova < 0 or size <= 0 or iova + size > SPACE:
                raise IolaneError(f"dirty log range {iova:#x} + {size:#x}: empty, or beyond 64 bits")
        self.page_size = page_size
        self.overflowed = False
        self._ranges = tuple((iova, iova + size) for iova, size in ranges) or ((0, SPACE),)
        self._chunk_size = page_size * CHUNK_PAGES
        self._chunks: dict[int, DirtyBitmap] = {}

    def mark(self, iova: int, length: int) -> None:
        """The device has written [iova, iova + length)."""
        for start, end in self._ranges:
            first, last = max(start, iova), min(end, iova + length)
            if first < last:
                self._mark(first, last)

    def _mark(self, start: int, end: int) -> None:
        while start < end:
            number = start // self._chunk_size
            stop = min(end, (number + 1) * self._chunk_size)
            chunk = self._chunks.get(number)
            if chunk is None:
                if len(self._chunks) >= CHUNK_LIMIT:
                    self.overflowed = True
                    return
                chunk = DirtyBitmap(number * self._chunk_size, self._chunk_size, self.page_size)
                self._chunks[number] = chunk
            chunk.mark(start, stop - start)
            start = stop

    def collect(self, iova: int, size: int) -> bytes:
        """One bit a page of [iova, iova + size), the first in the lowest bit; what is reported is cleared."""
        page = self.page_size
        if iova < 0 or size <= 0 or iova % page or size % page or iova + size > SPACE:
            raise IolaneError(f"dirty pages of {iova:#x} + {size:#x}: not whole pages of {page} bytes")
        pages = size // page
        report = bytearray(-(-pages // 8))
        if self.overflowed:
            report[:] = b"\xff" * len(report)
            if pages % 8:
                report[-1] = (1 << pages % 8) - 1
            return bytes(report)
        first, last = iova // self._chunk_size, (iova + size - 1) // self._chunk_size
        if last - first < len(self._chunks):
            numbers = [number for number in range(first, last + 1) if number in self._chunks]
        else:
            numbers = [number for number in self._chunks if first <= number <= last]
        for number in numbers:
            start = max(iova, number * self._chunk_size)
            stop = min(iova + size, (number + 1) * self._chunk_size)
            bits = int.from_bytes(self._chunks[number].collect(start, stop - start), "little")
            if bits:
                _merge(report, (start - iova) // page, bits)
        return bytes(report)


def _merge(report: bytearray, bit: int, bits: int) -> None:
    bits <<= bit % 8
    place = bit // 8
    piece = bits.to_bytes(-(-bits.bit_length() // 8), "little")
    old = int.from_bytes(report[place : place + len(piece)], "little")
    report[place : place + len(piece)] = (old | bits).to_bytes(len(piece), "little")
