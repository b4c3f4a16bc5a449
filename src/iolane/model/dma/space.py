"""What a device reaches by DMA: IOVA -> memory, with permissions."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from struct import Struct
from typing import Protocol

from iolane.errors import IolaneError
from iolane.memory.files import MemoryFiles
from iolane.memory.mapping import Mapping
from iolane.model.dma.backing import Backing
from iolane.model.dma.dirty import DirtyLog
from iolane.model.dma.fault import DmaFault, FaultReason
from iolane.model.dma.host import HostRegion
from iolane.model.dma.indirect import IndirectAccess
from iolane.model.dma.permission import READ_WRITE, Direction, MapChange, Permission
from iolane.model.dma.pin import Pinned
from iolane.model.dma.table import NO_MAP, DmaMap, MapKind, MapTable
from iolane.model.observers import Observers

SPACE = 1 << 64
_U16 = Struct("<H")
FAULTS_KEPT = 256
MAPS_LIMIT = 65535
"""Maps at most; QEMU's vfio-user client takes no more for granted (`max_dma_maps`)."""

Piece = tuple[DmaMap, int, int]
"""A map, and the IOVA and length of the part of an access that lies in it."""
Bounce = tuple[int, memoryview]
"""The IOVA of indirect memory, and the buffer that stands for it."""


class MapOverlapError(IolaneError):
    """A map lies over one that exists."""


class MapLimitError(IolaneError):
    """More maps than `MAPS_LIMIT`."""


class WriteLog(Protocol):
    """Is told of each write, after it; of memory that `view` and `scatter` hand out, before."""

    def mark(self, iova: int, length: int) -> None: ...


class DmaSpace:
    """The memory a device may touch, and every access it makes.

    Methods are called under the device's lock; `map`, `unmap`, `pin` and the release of a pin also take it.
    `unmap` waits for pins with the lock released, however often the caller holds it.

    Args:
        lock: the device's condition.
        device: its name, for faults.
        files: where mappings of memory files are shared; by default among the maps of this space.
        page_size: starts and sizes of maps are multiples of it.
    """

    def __init__(
        self,
        lock: threading.Condition | None = None,
        *,
        device: str = "device",
        files: MemoryFiles | None = None,
        page_size: int = 4096,
        enabled: bool = True,
    ) -> None:
        self.device = device
        self.enabled = enabled
        """Bus Master Enable; a PCI function clears it at reset (PCI 3.0, 6.2.2)."""
        self.page_size = page_size
        self.indirect: IndirectAccess | None = None
        self.faults: deque[DmaFault] = deque(maxlen=FAULTS_KEPT)
        self.fault_count = 0
        self.fault_counts: dict[FaultReason, int] = {}
        self.on_fault: Observers[DmaFault] = Observers()
        self.on_change: Observers[MapChange] = Observers()
        self.bytes_read = 0
        self.bytes_written = 0
        self._lock = lock if lock is not None else threading.Condition(threading.RLock())
        self._backing = Backing(files if files is not None else MemoryFiles())
        self._table = MapTable()
        self._unmapping = 0
        self._hit = NO_MAP
        self._dirty: WriteLog | None = None

    # Maps.

    @property
    def maps(self) -> list[tuple[int, int, Permission, MapKind]]:
        """(iova, size, permission, kind) of every map, in order."""
        return [(item.start, item.end - item.start, item.permission, item.kind) for item in self._table]

    def host_regions(self) -> list[HostRegion]:
        """The maps of files that the device may read, for compiled code; of others it must ask `read`,
        `write`.
        """
        return [
            HostRegion(
                item.start,
                item.end - item.start,
                item.memory.address + item.start + item.delta,
                item.writable is not None,
                item.memory.broken_address,
                item.memory,
            )
            for item in self._table
            if isinstance(item.memory, Mapping) and item.readable is not None
        ]

    def map(
        self,
        iova: int,
        size: int,
        *,
        fd: int | None = None,
        offset: int = 0,
        permission: Permission = READ_WRITE,
        buffer: bytearray | memoryview | bytes | None = None,
    ) -> None:
        """Let the device reach `size` bytes at `iova`.

        They are `fd`'s from `offset` on (the descriptor stays the caller's), or `buffer`'s, or without either
        the owner's, who is asked through `indirect`.

        Raises:
            IolaneError: the range is empty, unaligned, overlapping or beyond the address space, or the file
                is shorter or opened for less than the permission.
        """
        self._check_range("map", iova, size)
        if (iova | size) & (self.page_size - 1):
            raise IolaneError(f"DMA map of {iova:#x} + {size:#x}: not whole pages of {self.page_size} bytes")
        permission = Permission(permission & READ_WRITE)
        with self._lock:
            if len(self._table) >= MAPS_LIMIT:
                raise MapLimitError(f"{self.device} has {MAPS_LIMIT} DMA maps already and takes no more")
            item = DmaMap(iova, iova + size, permission)
            other = self._table.add(item)
            if other is not None:
                raise MapOverlapError(f"DMA map {iova:#x} + {size:#x} overlaps the map at {other}")
            try:
                if fd is not None:
                    self._backing.by_file(item, fd, offset, self.page_size)
                elif buffer is not None:
                    self._backing.by_buffer(item, memoryview(buffer).cast("B"), offset)
            except BaseException:
                self._table.remove_run(item, 1)
                raise
            self.on_change.notify(MapChange(iova, size, permission))

    def _check_range(self, what: str, iova: int, size: int) -> None:
        """A range named by the guest's side; the end may be the very end of the address space."""
        if size <= 0 or iova < 0 or iova + size > SPACE:
            raise IolaneError(f"DMA {what} of {iova:#x} + {size:#x}: empty, or beyond 64 bits")

    def unmap(self, iova: int, size: int) -> int:
        """Drop every map inside the range, once no work holds it. Returns the bytes dropped, maybe 0.

        Raises:
            IolaneError: a map lies across the edge of the range; nothing is dropped, as with the kernel's
                VFIO_IOMMU_UNMAP_DMA (type 1, version 2).
        """
        self._check_range("unmap", iova, size)
        with self._lock:
            dropped = self._table.overlapping(iova, iova + size)
            for item in dropped:
                if item.start < iova or item.end > iova + size:
                    raise IolaneError(f"DMA unmap of {iova:#x} + {size:#x} would split the map at {item}")
            self._drop(dropped)
            return sum(item.end - item.start for item in dropped)

    def unmap_all(self) -> int:
        """Drop every map, once no work holds any. Returns the bytes dropped."""
        return self.unmap(0, SPACE)

    def _drop(self, dropped: list[DmaMap]) -> None:
        if not dropped:
            return
        self._table.remove_run(dropped[0], len(dropped))
        self._hit = NO_MAP
        self._unmapping += 1
        try:
            while any(item.pins for item in dropped):
                self._lock.wait()
        finally:
            self._unmapping -= 1
        for item in dropped:
            self._backing.release(item)
            self.on_change.notify(MapChange(item.start, item.end - item.start, None))

    # Accesses.

    def read(self, iova: int, n: int) -> bytes:
        """`n` bytes at `iova`. Raises DmaFault, as every access does."""
        hit = self._hit
        if not hit.start <= iova < hit.end:
            hit = self._hit = self._table.find(iova) or NO_MAP
        if self.enabled and 0 < n <= hit.end - iova:
            view = hit.readable
            if view is not None:
                at = iova + hit.delta
                data = view[at : at + n].tobytes()
                if not hit.memory.broken:
                    self.bytes_read += n
                    return data
        return b"".join(self._read_pieces(iova, n))

    def read_into(self, iova: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` from `iova` on."""
        target = memoryview(buffer).cast("B")
        at = 0
        for piece in self._read_pieces(iova, target.nbytes):
            target[at : at + len(piece)] = piece
            at += len(piece)

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at `iova`. Nothing is written unless all of it may be."""
        if isinstance(data, memoryview):
            data = data.cast("B")
        n = len(data)
        hit = self._hit
        if not hit.start <= iova < hit.end:
            hit = self._hit = self._table.find(iova) or NO_MAP
        if self.enabled and 0 < n <= hit.end - iova:
            view = hit.writable
            if view is not None:
                at = iova + hit.delta
                view[at : at + n] = data
                if not hit.memory.broken:
                    self.bytes_written += n
                    if self._dirty is not None:
                        self._dirty.mark(iova, n)
                    return
        self._write_pieces(iova, data)

    def load16(self, iova: int) -> int:
        """A 16-bit number that the other side may change meanwhile: the one before or the one after.

        `read` would mix both: the C library's memcpy loads two bytes as a byte and as a pair, so that an
        index on its way from 0xFF to 0x100 could be read as 0x1FF.
        """
        hit = self._hit
        if not hit.start <= iova < hit.end:
            hit = self._hit = self._table.find(iova) or NO_MAP
        view = hit.readable
        if self.enabled and view is not None and iova + 2 <= hit.end:
            value: int = _U16.unpack_from(view, iova + hit.delta)[0]
            if not hit.memory.broken:
                self.bytes_read += 2
                return value
        return int.from_bytes(self.read(iova, 2), "little")

    def store16(self, iova: int, value: int) -> None:
        """A 16-bit number that the other side reads whenever it likes: in one store.

        (`struct.pack_into` makes it zero first.)
        """
        hit = self._hit
        if not hit.start <= iova < hit.end:
            hit = self._hit = self._table.find(iova) or NO_MAP
        view = hit.writable
        if self.enabled and view is not None and iova + 2 <= hit.end:
            at = iova + hit.delta
            view[at : at + 2].cast("H")[0] = value
            if not hit.memory.broken:
                self.bytes_written += 2
                if self._dirty is not None:
                    self._dirty.mark(iova, 2)
                return
        self.write(iova, _U16.pack(value))

    def _read_pieces(self, iova: int, n: int) -> list[bytes]:
        parts = []
        for item, start, length in self._resolve(iova, n, Direction.READ):
            if item.readable is None:
                parts.append(self._ask(start, length))
                continue
            at = start + item.delta
            parts.append(item.readable[at : at + length].tobytes())
            if item.memory.broken:
                raise self._fault(iova, n, Direction.READ, FaultReason.BROKEN)
        self.bytes_read += n
        return parts

    def _write_pieces(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        n = len(data)
        source = memoryview(data)
        for item, start, length in self._resolve(iova, n, Direction.WRITE):
            part = source[start - iova : start - iova + length]
            if item.writable is None:
                self._tell(start, part.tobytes())
                continue
            at = start + item.delta
            item.writable[at : at + length] = part
            if item.memory.broken:
                raise self._fault(iova, n, Direction.WRITE, FaultReason.BROKEN)
        self.bytes_written += n
        if self._dirty is not None:
            self._dirty.mark(iova, n)

    def _ask(self, iova: int, n: int) -> bytes:
        """Read indirect memory."""
        try:
            if self.indirect is not None:
                data = self.indirect.read(iova, n)
                if len(data) == n:
                    return data
        except (IolaneError, OSError):
            pass
        raise self._fault(iova, n, Direction.READ, FaultReason.INDIRECT_FAILED) from None

    def _tell(self, iova: int, data: bytes) -> None:
        """Write indirect memory."""
        try:
            if self.indirect is not None:
                self.indirect.write(iova, data)
                return
        except (IolaneError, OSError):
            pass
        raise self._fault(iova, len(data), Direction.WRITE, FaultReason.INDIRECT_FAILED) from None

    def _resolve(self, iova: int, n: int, direction: Direction) -> list[Piece]:
        """The parts of the maps that hold [iova, iova + n), all of which allow the access; else a fault."""
        hit = self._hit
        if not hit.start <= iova < hit.end:
            hit = self._hit = self._table.find(iova) or NO_MAP
        if 0 < n <= hit.end - iova and self.enabled:
            allowed = hit.may_read if direction is Direction.READ else hit.may_write
            if allowed and not hit.memory.broken:
                return [(hit, iova, n)]
        return self._resolve_pieces(iova, n, direction)

    def _resolve_pieces(self, iova: int, n: int, direction: Direction) -> list[Piece]:
        if not self.enabled:
            raise self._fault(iova, n, direction, FaultReason.BUS_MASTER_OFF)
        end = iova + n
        if iova < 0 or n < 0 or end > SPACE:
            raise self._fault(iova, n, direction, FaultReason.OUT_OF_RANGE)
        pieces: list[Piece] = []
        position = iova
        for item in self._table.cover(iova, end):
            if direction is Direction.READ and not item.may_read:
                raise self._fault(iova, n, direction, FaultReason.WRITE_ONLY)
            if direction is Direction.WRITE and not item.may_write:
                raise self._fault(iova, n, direction, FaultReason.READ_ONLY)
            if item.memory.broken:
                raise self._fault(iova, n, direction, FaultReason.BROKEN)
            stop = min(end, item.end)
            pieces.append((item, position, stop - position))
            position = stop
        if position < end:
            reason = FaultReason.OUT_OF_RANGE if pieces else FaultReason.UNMAPPED
            raise self._fault(iova, n, direction, reason)
        return pieces

    def _fault(self, iova: int, n: int, direction: Direction, reason: FaultReason) -> DmaFault:
        fault = DmaFault(self.device, iova, n, direction, reason)
        self.faults.append(fault)
        self.fault_count += 1
        self.fault_counts[reason] = self.fault_counts.get(reason, 0) + 1
        self.on_fault.notify(fault)
        return fault.copy()

    # Zero-copy.

    def view(self, iova: int, n: int, *, write: bool = False) -> memoryview:
        """The memory itself; valid only while the device's lock is held.

        To write, it must lie in one file (or buffer) in one run. To read, memory in pieces comes as a copy.
        """
        views = self.scatter(iova, n, write=write)
        if len(views) == 1:
            return views[0]
        if write and n:
            raise self._fault(iova, n, Direction.WRITE, FaultReason.OUT_OF_RANGE)
        return memoryview(b"".join(views))

    def scatter(self, iova: int, n: int, *, write: bool = False) -> list[memoryview]:
        """The memory itself as a list of runs; valid only while the device's lock is held.

        Indirect memory comes as a copy to read, and can't be had to write: use `write` or `pin`.
        """
        direction = Direction.WRITE if write else Direction.READ
        views, _ = self._collect_views([(iova, n)], direction)
        self._account(iova, n, write)
        return views

    def _account(self, iova: int, n: int, write: bool) -> None:
        if not write:
            self.bytes_read += n
            return
        self.bytes_written += n
        if self._dirty is not None:
            self._dirty.mark(iova, n)

    def _collect_views(
        self, ranges: Sequence[tuple[int, int]], direction: Direction, bounce: list[Bounce] | None = None
    ) -> tuple[list[memoryview], list[DmaMap]]:
        """Views of the ranges, neighbours joined, and the maps they lie in.

        Indirect memory to write is handed out as a buffer and added to `bounce`, or refused without it.
        """
        pieces = [piece for iova, n in ranges for piece in self._resolve(iova, n, direction)]
        views: list[memoryview] = []
        run: memoryview | None = None
        first = last = 0
        for item, start, length in pieces:
            base = item.readable if direction is Direction.READ else item.writable
            at = start + item.delta
            if base is not None and base is run and at == last:
                last = at + length
                continue
            if run is not None:
                views.append(run[first:last])
            run, first, last = base, at, at + length
            if base is None:
                views.append(self._indirect_view(start, length, direction, bounce))
        if run is not None:
            views.append(run[first:last])
        return views, [item for item, _, _ in pieces]

    def _indirect_view(
        self, iova: int, n: int, direction: Direction, bounce: list[Bounce] | None
    ) -> memoryview:
        if direction is Direction.READ:
            return memoryview(self._ask(iova, n))
        if bounce is None or self.indirect is None:
            raise self._fault(iova, n, direction, FaultReason.INDIRECT_FAILED)
        view = memoryview(bytearray(n))
        bounce.append((iova, view))
        return view

    def pin(self, pieces: Sequence[tuple[int, int]], *, write: bool) -> Pinned:
        """Hold the memory of (iova, length) pieces for a task; see `Pinned`. Unmap waits for its release.

        Indirect memory is copied: read now, written back at the release.
        """
        direction = Direction.WRITE if write else Direction.READ
        ranges = tuple(pieces)
        with self._lock:
            bounce: list[Bounce] = []
            views, maps = self._collect_views(ranges, direction, bounce)
            for item in maps:
                item.pins += 1
            return Pinned(ranges, views, maps, write, lambda pinned: self._unpin(pinned, bounce))

    def _unpin(self, pinned: Pinned, bounced: list[Bounce]) -> DmaFault | None:
        """Give a pin back: what was written is marked dirty now, after the last write."""
        fault: DmaFault | None = None
        with self._lock:
            try:
                for iova, view in bounced:
                    self._tell(iova, view.tobytes())
            except DmaFault as refused:
                fault = refused
            finally:
                for item in pinned.maps:
                    item.pins -= 1
                if self._unmapping:
                    self._lock.notify_all()
            direction = Direction.WRITE if pinned.write else Direction.READ
            for iova, length in pinned.pieces:
                self._account(iova, length, pinned.write)
            if fault is None and pinned.broken:
                fault = self._fault(pinned.pieces[0][0], pinned.length, direction, FaultReason.BROKEN)
            return fault

    # Dirty pages.

    def start_dirty_log(self, ranges: Sequence[tuple[int, int]] = (), page_size: int = 4096) -> None:
        """Log what the device writes in `ranges` of (iova, size), or everywhere."""
        self._dirty = DirtyLog(ranges, page_size)

    def collect_dirty(self, iova: int, size: int) -> bytes:
        """One bit a page since the last call, the first page in the lowest bit."""
        if not isinstance(self._dirty, DirtyLog):
            raise IolaneError(f"no dirty log was started for {self.device}")
        return self._dirty.collect(iova, size)

    def share_dirty_log(self, log: WriteLog) -> None:
        """Log into somebody else's bitmap (vhost-user's LOG_SHMFD) until `stop_dirty_log`."""
        self._dirty = log

    def stop_dirty_log(self) -> None:
        self._dirty = None
