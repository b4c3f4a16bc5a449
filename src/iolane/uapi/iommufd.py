"""iommufd's constants and layouts (include/uapi/linux/iommufd.h, Linux 6.2 and later).

Members bear the header's names, less the prefix that the class stands for. A test compares them with the
header where there is one.
"""

from enum import IntEnum, IntFlag
from struct import Struct


class Ioctl(IntEnum):
    """IOMMU_*: request numbers, _IO(';', 0x80 + n)."""

    DESTROY = 0x3B80
    IOAS_ALLOC = 0x3B81
    IOAS_IOVA_RANGES = 0x3B84
    IOAS_MAP = 0x3B85
    IOAS_UNMAP = 0x3B86


class MapFlags(IntFlag):
    """IOMMU_IOAS_MAP_*: struct iommu_ioas_map."""

    FIXED_IOVA = 1 << 0
    WRITEABLE = 1 << 1
    READABLE = 1 << 2


DESTROY = Struct("=II")
"""struct iommu_destroy: size, id."""
IOAS_ALLOC = Struct("=III")
"""struct iommu_ioas_alloc: size, flags, out_ioas_id."""
IOAS_IOVA_RANGES = Struct("=IIIIQQ")
"""struct iommu_ioas_iova_ranges: size, ioas_id, num_iovas, reserved, allowed_iovas, out_iova_alignment."""
IOVA_RANGE = Struct("=QQ")
"""struct iommu_iova_range: start, last."""
IOAS_MAP = Struct("=IIIIQQQ")
"""struct iommu_ioas_map: size, flags, ioas_id, reserved, user_va, length, iova."""
IOAS_UNMAP = Struct("=IIQQ")
"""struct iommu_ioas_unmap: size, ioas_id, iova, length."""
