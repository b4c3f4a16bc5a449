"""What a DMA map allows, and which way an access goes."""

from enum import IntFlag, StrEnum
from typing import NamedTuple


class Permission(IntFlag):
    """What the device may do with a map. The values are VFIO's `VFIO_DMA_MAP_FLAG_READ` and `_WRITE`."""

    READ = 1
    WRITE = 2


READ_WRITE = Permission.READ | Permission.WRITE


class Direction(StrEnum):
    """Which way an access goes, seen from the device."""

    READ = "read"
    WRITE = "write"


class MapChange(NamedTuple):
    """A map that was made, or dropped (`permission` is None then)."""

    iova: int
    size: int
    permission: Permission | None
