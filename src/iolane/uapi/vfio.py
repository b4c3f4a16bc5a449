"""VFIO's constants (include/uapi/linux/vfio.h), which vfio-user shares. Members bear the header's names,
less the prefix that the class stands for. A test compares them with the header.
"""

from enum import IntEnum, IntFlag

API_VERSION = 0


class IommuType(IntEnum):
    """VFIO_*_IOMMU and extensions: what VFIO_CHECK_EXTENSION and VFIO_SET_IOMMU take."""

    TYPE1_IOMMU = 1
    TYPE1v2_IOMMU = 3
    DMA_CC_IOMMU = 4
    NOIOMMU_IOMMU = 8
    UNMAP_ALL = 9
    UPDATE_VADDR = 10


class Ioctl(IntEnum):
    """Request numbers, _IO(';', 100 + n). Container, group and device ioctls share some numbers."""

    GET_API_VERSION = 0x3B64
    CHECK_EXTENSION = 0x3B65
    SET_IOMMU = 0x3B66
    GROUP_GET_STATUS = 0x3B67
    GROUP_SET_CONTAINER = 0x3B68
    GROUP_UNSET_CONTAINER = 0x3B69
    GROUP_GET_DEVICE_FD = 0x3B6A
    DEVICE_GET_INFO = 0x3B6B
    DEVICE_GET_REGION_INFO = 0x3B6C
    DEVICE_GET_IRQ_INFO = 0x3B6D
    DEVICE_SET_IRQS = 0x3B6E
    DEVICE_RESET = 0x3B6F
    DEVICE_GET_PCI_HOT_RESET_INFO = 0x3B70
    DEVICE_PCI_HOT_RESET = 0x3B71
    DEVICE_IOEVENTFD = 0x3B74
    DEVICE_FEATURE = 0x3B75
    DEVICE_BIND_IOMMUFD = 0x3B76
    DEVICE_ATTACH_IOMMUFD_PT = 0x3B77
    DEVICE_DETACH_IOMMUFD_PT = 0x3B78
    IOMMU_GET_INFO = 0x3B70
    IOMMU_MAP_DMA = 0x3B71
    IOMMU_UNMAP_DMA = 0x3B72
    IOMMU_ENABLE = 0x3B73
    IOMMU_DISABLE = 0x3B74
    IOMMU_DIRTY_PAGES = 0x3B75


class GroupFlags(IntFlag):
    """VFIO_GROUP_FLAGS_*: struct vfio_group_status."""

    VIABLE = 1 << 0
    CONTAINER_SET = 1 << 1


class DeviceFlags(IntFlag):
    """VFIO_DEVICE_FLAGS_*: struct vfio_device_info."""

    RESET = 1 << 0
    PCI = 1 << 1
    PLATFORM = 1 << 2
    AMBA = 1 << 3
    CCW = 1 << 4
    AP = 1 << 5
    FSL_MC = 1 << 6
    CAPS = 1 << 7


class PciHotResetFlags(IntFlag):
    """VFIO_PCI_HOT_RESET_FLAG_*: struct vfio_pci_hot_reset_info of a device bound to an iommufd."""

    DEV_ID = 1 << 0
    DEV_ID_OWNED = 1 << 1


class RegionFlags(IntFlag):
    """VFIO_REGION_INFO_FLAG_*: struct vfio_region_info."""

    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2
    CAPS = 1 << 3


class RegionCap(IntEnum):
    """VFIO_REGION_INFO_CAP_*: ids in a region's chain of struct vfio_info_cap_header."""

    SPARSE_MMAP = 1
    TYPE = 2
    MSIX_MAPPABLE = 3


class PciRegion(IntEnum):
    """VFIO_PCI_*_REGION_INDEX."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


PCI_NUM_REGIONS = 9


class PciIrq(IntEnum):
    """VFIO_PCI_*_IRQ_INDEX."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


PCI_NUM_IRQS = 5


class IrqInfo(IntFlag):
    """VFIO_IRQ_INFO_*: struct vfio_irq_info."""

    EVENTFD = 1 << 0
    MASKABLE = 1 << 1
    AUTOMASKED = 1 << 2
    NORESIZE = 1 << 3


class IrqSet(IntFlag):
    """VFIO_IRQ_SET_*: struct vfio_irq_set; one of the data kinds and one of the actions."""

    DATA_NONE = 1 << 0
    DATA_BOOL = 1 << 1
    DATA_EVENTFD = 1 << 2
    ACTION_MASK = 1 << 3
    ACTION_UNMASK = 1 << 4
    ACTION_TRIGGER = 1 << 5
    DATA_TYPE_MASK = DATA_NONE | DATA_BOOL | DATA_EVENTFD
    ACTION_TYPE_MASK = ACTION_MASK | ACTION_UNMASK | ACTION_TRIGGER


class IoeventfdFlags(IntFlag):
    """VFIO_DEVICE_IOEVENTFD_*: the width of the write that signals."""

    _8 = 1 << 0
    _16 = 1 << 1
    _32 = 1 << 2
    _64 = 1 << 3


class FeatureFlags(IntFlag):
    """VFIO_DEVICE_FEATURE_{GET,SET,PROBE}; the low 16 bits hold a `Feature`."""

    GET = 1 << 16
    SET = 1 << 17
    PROBE = 1 << 18


FEATURE_MASK = 0xFFFF


class Feature(IntEnum):
    """VFIO_DEVICE_FEATURE_*: the feature indexes."""

    PCI_VF_TOKEN = 0
    MIGRATION = 1
    MIG_DEVICE_STATE = 2
    LOW_POWER_ENTRY = 3
    LOW_POWER_ENTRY_WITH_WAKEUP = 4
    LOW_POWER_EXIT = 5
    DMA_LOGGING_START = 6
    DMA_LOGGING_STOP = 7
    DMA_LOGGING_REPORT = 8
    MIG_DATA_SIZE = 9
    BUS_MASTER = 10


class MigrationFlags(IntFlag):
    """VFIO_MIGRATION_*: what struct vfio_device_feature_migration announces."""

    STOP_COPY = 1 << 0
    P2P = 1 << 1
    PRE_COPY = 1 << 2


class DeviceState(IntEnum):
    """VFIO_DEVICE_STATE_*: enum vfio_device_mig_state."""

    ERROR = 0
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4
    RUNNING_P2P = 5
    PRE_COPY = 6
    PRE_COPY_P2P = 7


class IommuInfo(IntFlag):
    """VFIO_IOMMU_INFO_*: struct vfio_iommu_type1_info."""

    PGSIZES = 1 << 0
    CAPS = 1 << 1


class IommuCap(IntEnum):
    """VFIO_IOMMU_TYPE1_INFO_*: ids in its chain of capabilities."""

    CAP_IOVA_RANGE = 1
    CAP_MIGRATION = 2
    DMA_AVAIL = 3


class DmaMapFlags(IntFlag):
    """VFIO_DMA_MAP_FLAG_*: struct vfio_iommu_type1_dma_map."""

    READ = 1 << 0
    WRITE = 1 << 1
    VADDR = 1 << 2


class DmaUnmapFlags(IntFlag):
    """VFIO_DMA_UNMAP_FLAG_*: struct vfio_iommu_type1_dma_unmap."""

    GET_DIRTY_BITMAP = 1 << 0
    ALL = 1 << 1
    VADDR = 1 << 2


class DirtyPagesFlags(IntFlag):
    """VFIO_IOMMU_DIRTY_PAGES_FLAG_*: struct vfio_iommu_type1_dirty_bitmap."""

    START = 1 << 0
    STOP = 1 << 1
    GET_BITMAP = 1 << 2
