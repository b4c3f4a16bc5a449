"""DMA: what memory a device may touch, by address, with permissions, faults, pins and dirty pages."""

from iolane.model.dma.fault import DmaFault, FaultReason
from iolane.model.dma.host import HostRegion
from iolane.model.dma.indirect import IndirectAccess
from iolane.model.dma.permission import READ_WRITE, Direction, MapChange, Permission
from iolane.model.dma.pin import Pinned
from iolane.model.dma.space import DmaSpace, MapLimitError, MapOverlapError, WriteLog
from iolane.model.dma.table import MapKind

__all__ = [
    "READ_WRITE",
    "Direction",
    "DmaFault",
    "DmaSpace",
    "FaultReason",
    "HostRegion",
    "IndirectAccess",
    "MapChange",
    "MapKind",
    "MapLimitError",
    "MapOverlapError",
    "Permission",
    "Pinned",
    "WriteLog",
]
