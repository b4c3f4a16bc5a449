"""The DMA of hardware as a carrier gives it: each map of guest memory is made in the IOMMU, too."""

from __future__ import annotations

import errno
import logging
import threading

from iolane.carriers.vfio.address_space import DmaAddressSpace
from iolane.carriers.vfio.ioctl import VfioError
from iolane.errors import IolaneError
from iolane.memory.mapping import Mapping, MappingError
from iolane.model.dma import DmaSpace, MapLimitError, MapOverlapError, Permission
from iolane.model.dma.permission import READ_WRITE
from iolane.model.dma.table import DmaMap

_log = logging.getLogger("iolane.vfio")


class PassedDma(DmaSpace):
    """Guest memory, mapped here and from here into the IOMMU, where it is pinned.

    Only memory that came as a file can be; what the carrier's other side answers by message (ROMs, the BARs
    of other devices) hardware can't reach. Its DMA does not pass through this process and is not seen here.

    Attributes:
        space: where the function's DMA goes.
        out_of_reach: (iova, size) of maps without a file.
    """

    def __init__(self, lock: threading.Condition, *, device: str, space: DmaAddressSpace) -> None:
        super().__init__(lock, device=device)
        self.space = space
        self.out_of_reach: dict[int, int] = {}
        self._passed: set[int] = set()

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
        super().map(iova, size, fd=fd, offset=offset, permission=permission, buffer=buffer)
        with self._lock:
            item = self._table.find(iova)
            if item is None or not isinstance(item.memory, Mapping):
                self.out_of_reach[iova] = size
                return
            try:
                self.space.map(iova, item.memory.address + iova + item.delta, size, item.permission)
            except VfioError as error:
                super().unmap(iova, size)
                _log.warning("%s: %s", self.device, error)
                raise _translated(error) from None
            self._passed.add(iova)

    def _drop(self, dropped: list[DmaMap]) -> None:
        """The hardware loses it before its memory is given back."""
        for item in dropped:
            self.out_of_reach.pop(item.start, None)
            if item.start in self._passed:
                self._passed.discard(item.start)
                self.space.unmap(item.start, item.end - item.start)
        super()._drop(dropped)


def _translated(error: VfioError) -> IolaneError:
    """As carriers know what a map is refused for."""
    if error.errno == errno.EEXIST:
        return MapOverlapError(error.message, remedy=error.remedy)
    if error.errno == errno.ENOSPC:
        return MapLimitError(error.message, remedy=error.remedy)
    return MappingError(error.message, errno=error.errno, remedy=error.remedy)
