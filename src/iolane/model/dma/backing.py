"""What holds the bytes of a map: a file, mapped once for all maps of it, or a buffer of our own."""

from __future__ import annotations

from iolane.errors import IolaneError
from iolane.memory.files import MemoryFiles
from iolane.memory.mapping import Mapping
from iolane.model.dma.permission import Permission
from iolane.model.dma.table import DmaMap, MapKind


class SharedViews:
    """The views of one mapping that all its maps share: 65,535 maps of one file cost no memoryview each."""

    __slots__ = ("maps", "readable", "writable")

    def __init__(self, mapping: Mapping, writable: bool) -> None:
        whole = memoryview(mapping)
        self.readable = whole.toreadonly()
        self.writable = whole if writable else None
        self.maps = 0


class Backing:
    """Gives maps their memory and takes it back.

    Args:
        files: where mappings of memory files are shared.
    """

    def __init__(self, files: MemoryFiles) -> None:
        self._files = files
        self._views: dict[Mapping, SharedViews] = {}

    def by_file(self, item: DmaMap, fd: int, offset: int, page_size: int) -> None:
        if offset < 0 or offset & (page_size - 1):
            raise IolaneError(f"DMA map at {item.start:#x}: file offset {offset:#x} is not on a page")
        end = offset + item.end - item.start
        item.kind = MapKind.FILE
        writable = bool(item.permission & Permission.WRITE)
        mapping = self._files.acquire(fd, writable, end=end)
        file = self._views.get(mapping)
        if file is None:
            file = self._views[mapping] = SharedViews(mapping, writable)
        file.maps += 1
        item.memory, item.delta = mapping, offset - item.start
        if item.permission & Permission.READ:
            item.readable = file.readable
        if writable:
            item.writable = file.writable

    def by_buffer(self, item: DmaMap, view: memoryview, offset: int) -> None:
        if offset < 0 or offset + item.end - item.start > view.nbytes:
            raise IolaneError(f"DMA map at {item.start:#x}: its buffer has only {view.nbytes:#x} bytes")
        if item.permission & Permission.WRITE and view.readonly:
            raise IolaneError(f"DMA map at {item.start:#x}: its buffer is read-only")
        item.kind = MapKind.BUFFER
        item.delta = offset - item.start
        if item.permission & Permission.READ:
            item.readable = view.toreadonly()
        if item.permission & Permission.WRITE:
            item.writable = view

    def release(self, item: DmaMap) -> None:
        """The map is gone; a file that no other map uses is unmapped."""
        item.readable = item.writable = None
        if isinstance(item.memory, Mapping):
            file = self._views[item.memory]
            file.maps -= 1
            if not file.maps:
                del self._views[item.memory]
            self._files.release(item.memory)
