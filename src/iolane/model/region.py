"""Regions: what a carrier serves of a device, each a range of bytes made of register maps and plain
memory.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from iolane.model.registers import Place, RegisterMap

HOLE_LIMIT = 1024
"""Distinct accesses to holes that a region remembers; a guest names them, so they are bounded."""


class RegionIndex(IntEnum):
    """Regions of a PCI function in VFIO's numbering (linux/vfio.h, VFIO_PCI_*_REGION_INDEX)."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


class Area(NamedTuple):
    """A range of a region, in bytes."""

    offset: int
    size: int


class Located(NamedTuple):
    """A register found in a region."""

    name: str
    """`bar0.CONTROL`, `config.COMMAND`, `bar0.DOORBELL[3]`."""
    registers: RegisterMap
    place: Place
    offset: int
    """Offset in the region at which the register starts."""


class PlainMemory:
    """A part of a region that only stores bytes; the guest may map it."""

    def __init__(self, view: memoryview) -> None:
        self.view = view

    def read(self, offset: int, size: int) -> int:
        """The little-endian value of `size` bytes at `offset`."""
        return int.from_bytes(self.view[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Store the `size` low bytes of `value` at `offset`."""
        self.view[offset : offset + size] = value.to_bytes(size, "little")


class Piece(NamedTuple):
    """Register map or memory at `offset` in a region, `size` bytes long. `name` prefixes its registers'
    names.
    """

    offset: int
    size: int
    content: RegisterMap | PlainMemory
    name: str


class Region:
    """A range of `size` bytes that the guest reads and writes.

    `read(offset, size)` and `write(offset, size, value)` are instance attributes, so that tracing replaces
    them and puts the very same callables back. The caller checks `offset + size <= region.size` and that
    size is 1, 2, 4 or 8.
    """

    def __init__(
        self,
        index: RegionIndex,
        size: int,
        pieces: Sequence[Piece],
        *,
        name: str,
        widest: int = 8,
        io: bool = False,
    ) -> None:
        self.index = index
        self.size = size
        self.name = name
        self.widest = widest
        self.io = io
        self.pieces = tuple(sorted(pieces))
        self._starts = [piece.offset for piece in self.pieces]
        self._check_overlap()
        self.holes: dict[tuple[str, int, int], int] = {}
        """(`read` or `write`, offset, size) -> count, of accesses outside every piece."""
        self.fd = -1
        """What may be mapped of the region, from `fd_offset` on: -1 for nothing."""
        self.fd_offset = 0
        self.mappable: tuple[Area, ...] = ()
        self.read: Callable[[int, int], int] = self._read
        self.write: Callable[[int, int, int], None] = self._write
        only = self.pieces[0] if len(self.pieces) == 1 else None
        if only is not None and only.offset == 0 and isinstance(only.content, RegisterMap):
            self.read, self.write = only.content.read, only.content.write

    def _check_overlap(self) -> None:
        end = 0
        for piece in self.pieces:
            if piece.offset < end or piece.offset + piece.size > self.size:
                raise TypeError(
                    f"{self.name}: {piece.name} at {piece.offset:#x} overlaps or leaves {self.size:#x} bytes"
                )
            end = piece.offset + piece.size

    def _piece_at(self, offset: int) -> Piece | None:
        slot = bisect_right(self._starts, offset) - 1
        if slot < 0:
            return None
        piece = self.pieces[slot]
        return piece if offset < piece.offset + piece.size else None

    def _empty(self, offset: int, size: int) -> bool:
        slot = bisect_right(self._starts, offset + size - 1) - 1
        return slot < 0 or self.pieces[slot].offset + self.pieces[slot].size <= offset

    def _read(self, offset: int, size: int) -> int:
        piece = self._piece_at(offset)
        if piece is not None and offset + size <= piece.offset + piece.size:
            return piece.content.read(offset - piece.offset, size)
        if size == 1 or self._empty(offset, size):
            self._note_hole("read", offset, size)
            return 0
        half = size // 2
        return self._read(offset, half) | self._read(offset + half, half) << 8 * half

    def _write(self, offset: int, size: int, value: int) -> None:
        piece = self._piece_at(offset)
        if piece is not None and offset + size <= piece.offset + piece.size:
            piece.content.write(offset - piece.offset, size, value)
        elif size == 1 or self._empty(offset, size):
            self._note_hole("write", offset, size)
        else:
            half = size // 2
            self._write(offset, half, value & ((1 << 8 * half) - 1))
            self._write(offset + half, half, value >> 8 * half)

    def _note_hole(self, direction: str, offset: int, size: int) -> None:
        key = (direction, offset, size)
        if key in self.holes or len(self.holes) < HOLE_LIMIT:
            self.holes[key] = self.holes.get(key, 0) + 1

    def read_bytes(self, offset: int, length: int) -> bytes:
        """Read `length` bytes by naturally aligned accesses of at most `widest` bytes."""
        parts = (
            self.read(start, size).to_bytes(size, "little") for start, size in self._accesses(offset, length)
        )
        return b"".join(parts)

    def write_bytes(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` by naturally aligned accesses of at most `widest` bytes."""
        for start, size in self._accesses(offset, len(data)):
            self.write(start, size, int.from_bytes(data[start - offset : start - offset + size], "little"))

    def _accesses(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        end = offset + length
        while offset < end:
            size = self.widest
            while offset % size or offset + size > end:
                size //= 2
            yield offset, size
            offset += size

    def locate(self, offset: int) -> Located | None:
        """The register at `offset`, with its name, or None for memory and for what is not modelled."""
        piece = self._piece_at(offset)
        if piece is None or not isinstance(piece.content, RegisterMap):
            return None
        place = piece.content.layout.find(offset - piece.offset)
        if place is None:
            return None
        name = f"{piece.name}.{place.spec.element_name(place.element)}"
        return Located(name, piece.content, place, piece.offset + place.offset)

    @property
    def unmodelled(self) -> dict[tuple[str, int, int], int]:
        """(`read` or `write`, offset in the region, size) -> count, of accesses that no register or memory
        took.
        """
        found = dict(self.holes)
        for piece in self.pieces:
            if isinstance(piece.content, RegisterMap):
                for (direction, offset, size), count in piece.content.unmodelled.items():
                    found[direction, offset + piece.offset, size] = count
        return found

    def close(self) -> None:
        """Close the memory file, if the region has one."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        """What may be mapped of the region, from `fd_offset` on: -1 for nothing."""
        self.fd_offset = 0


def memory_file(size: int, name: str) -> tuple[int, memoryview]:
    """A sealed memfd of `size` bytes and a view of it: whoever it is shared with cannot shrink it under
    us.
    """
    fd = os.memfd_create(f"iolane-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd, memoryview(mmap.mmap(fd, size, mmap.MAP_SHARED))
