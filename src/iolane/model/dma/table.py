"""The maps of a DMA space in order, and the memory behind each."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from enum import StrEnum
from typing import Protocol

from iolane.model.dma.permission import Permission


class MapKind(StrEnum):
    """Where the bytes of a map are."""

    FILE = "file"
    BUFFER = "buffer"
    INDIRECT = "indirect"
    """At the map's owner, who is asked for each access."""


class Memory(Protocol):
    """What holds the bytes of a direct map: a `Mapping`, or `WHOLE` for memory of our own."""

    @property
    def broken(self) -> bool: ...


class Whole:
    """Memory of our own, that nobody can truncate."""

    broken = False


WHOLE = Whole()


class DmaMap:
    """One map. `readable[iova + delta]` is the byte at `iova`; None where permission or kind forbid it."""

    __slots__ = (
        "delta",
        "end",
        "kind",
        "may_read",
        "may_write",
        "memory",
        "permission",
        "pins",
        "readable",
        "start",
        "writable",
    )

    def __init__(self, start: int, end: int, permission: Permission) -> None:
        self.start = start
        self.end = end
        self.permission = permission
        self.kind = MapKind.INDIRECT
        self.memory: Memory = WHOLE
        self.delta = 0
        self.readable: memoryview | None = None
        self.writable: memoryview | None = None
        self.pins = 0
        self.may_read = bool(permission & Permission.READ)
        self.may_write = bool(permission & Permission.WRITE)

    def __str__(self) -> str:
        return f"{self.start:#x} + {self.end - self.start:#x}"


NO_MAP = DmaMap(1, 0, Permission(0))
"""Holds no address: the last-hit cache when it is empty."""


class MapTable:
    """Maps that do not overlap, by address."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._maps: list[DmaMap] = []

    def __len__(self) -> int:
        return len(self._maps)

    def __iter__(self) -> Iterator[DmaMap]:
        return iter(self._maps)

    def add(self, item: DmaMap) -> DmaMap | None:
        """Insert `item`, or return the map that it overlaps."""
        place = bisect_left(self._starts, item.start)
        if place < len(self._maps) and self._maps[place].start < item.end:
            return self._maps[place]
        if place and self._maps[place - 1].end > item.start:
            return self._maps[place - 1]
        self._starts.insert(place, item.start)
        self._maps.insert(place, item)
        return None

    def overlapping(self, start: int, end: int) -> list[DmaMap]:
        """Every map that has a byte in [start, end), in order."""
        first = bisect_right(self._starts, start) - 1
        if first < 0 or self._maps[first].end <= start:
            first += 1
        return self._maps[first : bisect_left(self._starts, end)]

    def remove_run(self, first: DmaMap, count: int) -> None:
        """Remove `count` neighbours in order, the first being `first`."""
        place = bisect_left(self._starts, first.start)
        del self._starts[place : place + count]
        del self._maps[place : place + count]

    def find(self, iova: int) -> DmaMap | None:
        """The map that holds the byte at `iova`."""
        place = bisect_right(self._starts, iova) - 1
        if place < 0:
            return None
        item = self._maps[place]
        return item if iova < item.end else None

    def cover(self, start: int, end: int) -> Iterator[DmaMap]:
        """The maps that hold [start, end) one after another; ends early at the first hole."""
        place = bisect_right(self._starts, start) - 1
        position = start
        while position < end and 0 <= place < len(self._maps):
            item = self._maps[place]
            if not item.start <= position < item.end:
                return
            yield item
            position = item.end
            place += 1
