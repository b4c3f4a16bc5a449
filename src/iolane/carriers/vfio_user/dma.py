"""DMA maps: what of the client's memory the device may touch."""

from __future__ import annotations

from iolane.carriers.vfio_user.protocol import (
    DMA_BITMAP,
    DMA_MAP,
    DMA_UNMAP,
    MAX_DATA_XFER,
    PAGE_SIZE,
    MapFlag,
    UnmapFlag,
)
from iolane.carriers.vfio_user.rejection import RefusedError, Rejection
from iolane.carriers.vfio_user.session import Reply, Request, Session
from iolane.errors import IolaneError
from iolane.memory.mapping import MappingError
from iolane.model.dma import MapLimitError, MapOverlapError, Permission

SPACE = 1 << 64
MAP_FLAGS = int(MapFlag.READ | MapFlag.WRITE | MapFlag.MMAP | MapFlag.FILE_IO)
"""As a number: the complement of an IntFlag has its own bits only, and lets unknown ones pass."""


class DmaCommands:
    """DMA_MAP and DMA_UNMAP."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def map(self, request: Request) -> Reply:
        """ "VFIO_USER_DMA_MAP". Without a descriptor the memory is reached by messages."""
        argsz, flags, offset, address, size = request.unpack(DMA_MAP, exact=True)
        if argsz < DMA_MAP.size:
            raise RefusedError(Rejection.ARGSZ, f"{argsz} for DMA_MAP")
        permission = Permission(flags & (MapFlag.READ | MapFlag.WRITE))
        needs_file = flags & (MapFlag.MMAP | MapFlag.FILE_IO)
        if flags & ~MAP_FLAGS or not permission or (needs_file and not request.fds):
            raise RefusedError(Rejection.DMA_FLAGS, f"{flags:#x} with {len(request.fds)} descriptors")
        _check_range(address, size)
        if (address | size | offset) & (PAGE_SIZE - 1):
            raise RefusedError(
                Rejection.DMA_RANGE, f"{address:#x} + {size:#x} from {offset:#x}: not whole pages"
            )
        fd = request.fds[0] if request.fds else None
        with self._session.device.lock:
            try:
                self._session.device.dma.map(address, size, fd=fd, offset=offset, permission=permission)
            except MapOverlapError as error:
                raise RefusedError(Rejection.DMA_OVERLAP, str(error)) from None
            except MapLimitError as error:
                raise RefusedError(Rejection.DMA_LIMIT, str(error)) from None
            except (MappingError, OSError, OverflowError) as error:
                raise RefusedError(Rejection.DMA_FILE, str(error)) from None
        return Reply()

    def unmap(self, request: Request) -> Reply:
        """ "VFIO_USER_DMA_UNMAP": releases every reference before the reply.

        The specification wants an exact match with a map; QEMU with a vIOMMU unmaps whole ranges at
        detach, in which there may be many maps or none: what lies inside is dropped, and the command
        succeeds.
        """
        argsz, flags, address, size = request.unpack(DMA_UNMAP)
        if not DMA_UNMAP.size <= argsz <= MAX_DATA_XFER:
            raise RefusedError(Rejection.ARGSZ, f"{argsz} for DMA_UNMAP")
        original = bytes(request.payload[: DMA_UNMAP.size])
        dma = self._session.device.dma
        if flags == UnmapFlag.ALL:
            if address or size:
                raise RefusedError(Rejection.DMA_RANGE, "an unmap of everything that names a range")
            with self._session.device.lock:
                dma.unmap_all()
            return Reply(original)
        if flags not in (0, UnmapFlag.GET_DIRTY_BITMAP):
            raise RefusedError(Rejection.DMA_FLAGS, f"{flags:#x}")
        _check_range(address, size)
        with self._session.device.lock:
            bitmap = b""
            if flags:
                bitmap = self._dirty_bitmap(request, argsz, address, size)
            try:
                dma.unmap(address, size)
            except IolaneError as error:
                raise RefusedError(Rejection.DMA_STRADDLE, str(error)) from None
        return Reply(original + bitmap)

    def _dirty_bitmap(self, request: Request, argsz: int, address: int, size: int) -> bytes:
        """The dirty pages of what goes away, as VFIO_IOMMU_UNMAP_DMA can report them."""
        if len(request.payload) < DMA_UNMAP.size + DMA_BITMAP.size:
            raise RefusedError(Rejection.PAYLOAD_SIZE, "DMA_UNMAP without its bitmap's layout")
        page_size, length = DMA_BITMAP.unpack_from(request.payload, DMA_UNMAP.size)
        if argsz < DMA_UNMAP.size + DMA_BITMAP.size + length:
            raise RefusedError(Rejection.ARGSZ, f"{argsz} for a bitmap of {length} bytes")
        if page_size != PAGE_SIZE or size % page_size or -(-size // (8 * page_size)) > length:
            raise RefusedError(Rejection.DMA_BITMAP, f"{length} bytes for {size:#x} in pages of {page_size}")
        try:
            bits = self._session.device.dma.collect_dirty(address, size)
        except IolaneError as error:
            raise RefusedError(Rejection.DMA_BITMAP, str(error)) from None
        return DMA_BITMAP.pack(page_size, length) + bits.ljust(length, b"\0")


def _check_range(address: int, size: int) -> None:
    if not size or address + size > SPACE:
        raise RefusedError(Rejection.DMA_RANGE, f"{address:#x} + {size:#x}")
