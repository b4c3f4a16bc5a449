"""The vfio-user protocol: numbers, flags and layouts.

Names in quotes are section titles of the specification, docs/interop/vfio-user.rst in QEMU's
repository. "All data is in the endianness of the host system"; iolane runs on little-endian hosts.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

MAJOR, MINOR = 0, 1
"""The protocol version that we speak; the reply to a lower minor version names that one
("VFIO_USER_VERSION").
"""


class Command(IntEnum):
    """ "Commands". 14 was DIRTY_PAGES in drafts and is not part of the specification."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class HeaderFlag(IntFlag):
    """ "Header", Flags. The four low bits are the message's type."""

    REPLY = 0x1
    NO_REPLY = 0x10
    ERROR = 0x20


TYPE_MASK = 0xF
TYPE_COMMAND = 0
TYPE_REPLY = 1

HEADER = Struct("<HHIII")
"""Message ID, command, message size, flags, error."""
HEADER_SIZE = HEADER.size

VERSION = Struct("<HH")
"""Major, minor; JSON that ends in NUL follows."""
DMA_MAP = Struct("<IIQQQ")
"""argsz, flags, offset, address, size."""
DMA_UNMAP = Struct("<IIQQ")
"""argsz, flags, address, size."""
DMA_BITMAP = Struct("<QQ")
"""pgsize, size: follows DMA_UNMAP with `UnmapFlag.GET_DIRTY_BITMAP` (libvfio-user's struct
vfio_user_bitmap).
"""
DEVICE_INFO = Struct("<IIII")
"""argsz, flags, num_regions, num_irqs."""
REGION_INFO = Struct("<IIIIQQ")
"""argsz, flags, index, cap_offset, size, offset."""
CAPABILITY_HEADER = Struct("<HHI")
"""id, version, next: "VFIO cap header format"."""
SPARSE_MMAP = Struct("<II")
"""nr_areas, reserved: "VFIO region info cap sparse mmap"."""
SPARSE_AREA = Struct("<QQ")
"""offset, size."""
REGION_IO_FDS = Struct("<IIII")
"""argsz, flags, index, count."""
IRQ_INFO = Struct("<IIII")
"""argsz, flags, index, count."""
IRQ_SET = Struct("<IIIII")
"""argsz, flags, index, start, count."""
REGION_ACCESS = Struct("<QII")
"""offset, region, count."""
DMA_ACCESS = Struct("<QQ")
"""address, count."""
WRITE_MULTI = Struct("<Q")
"""wr_cnt."""
WRITE_ONE = Struct("<QII8s")
"""offset, region, count, data: "Single Device Write Format"."""
FEATURE = Struct("<II")
"""argsz, flags."""
FEATURE_MIGRATION = Struct("<Q")
"""flags."""
FEATURE_STATE = Struct("<II")
"""device_state, data_fd."""
LOGGING_CONTROL = Struct("<QII")
"""page_size, num_ranges, reserved."""
LOGGING_RANGE = Struct("<QQ")
"""iova, length."""
LOGGING_REPORT = Struct("<QQQ")
"""iova, length, page_size."""
MIGRATION_DATA = Struct("<II")
"""argsz, size."""


class DeviceFlag(IntFlag):
    """ "VFIO_USER_DEVICE_GET_INFO"."""

    RESET = 1
    PCI = 2


class RegionFlag(IntFlag):
    """ "VFIO_USER_DEVICE_GET_REGION_INFO"."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


CAPABILITY_SPARSE_MMAP = 1
"""VFIO_REGION_INFO_CAP_SPARSE_MMAP of <linux/vfio.h>."""


class IrqFlag(IntFlag):
    """ "VFIO_USER_DEVICE_GET_IRQ_INFO"."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class IrqData(IntFlag):
    """ "VFIO_USER_DEVICE_SET_IRQS": what the message carries. Exactly one."""

    NONE = 0x01
    BOOL = 0x02
    EVENTFD = 0x04


class IrqAction(IntFlag):
    """ "VFIO_USER_DEVICE_SET_IRQS": what to do. Exactly one."""

    MASK = 0x08
    UNMASK = 0x10
    TRIGGER = 0x20


IRQ_DATA_MASK = 0x07
IRQ_ACTION_MASK = 0x38


class MapFlag(IntFlag):
    """ "VFIO_USER_DMA_MAP"; MMAP and FILE_IO are libvfio-user's hints on how to use the fd."""

    READ = 1
    WRITE = 2
    MMAP = 4
    FILE_IO = 8


class UnmapFlag(IntFlag):
    """ "VFIO_USER_DMA_UNMAP" has no flags; QEMU and libvfio-user send those of VFIO_IOMMU_UNMAP_DMA."""

    GET_DIRTY_BITMAP = 1
    ALL = 2


class Feature(IntEnum):
    """ "Device Features"."""

    MIGRATION = 1
    MIG_DEVICE_STATE = 2
    DMA_LOGGING_START = 6
    DMA_LOGGING_STOP = 7
    DMA_LOGGING_REPORT = 8


class FeatureFlag(IntFlag):
    """ "VFIO_USER_DEVICE_FEATURE"."""

    GET = 1 << 16
    SET = 1 << 17
    PROBE = 1 << 18


FEATURE_INDEX_MASK = 0xFFFF


class MigrationFlag(IntFlag):
    """ "VFIO_DEVICE_FEATURE_MIGRATION"."""

    STOP_COPY = 1
    P2P = 2
    PRE_COPY = 4


class MigrationState(IntEnum):
    """ "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE"."""

    ERROR = 0
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4
    RUNNING_P2P = 5
    PRE_COPY = 6
    PRE_COPY_P2P = 7


REGION_COUNT = 9
"""VFIO_PCI_NUM_REGIONS: six BARs, ROM, config space, VGA."""
IRQ_COUNT = 5
"""VFIO_PCI_NUM_IRQS: INTx, MSI, MSI-X, error, request."""

PAGE_SIZE = 4096
DEFAULT_MAX_MSG_FDS = 1
DEFAULT_MAX_DATA_XFER = 1 << 20
DEFAULT_MAX_DMA_MAPS = 65535
"""Defaults of "VFIO_USER_VERSION"'s capabilities."""

MAX_MSG_FDS = 16
"""What we advertise: QEMU treats more as fatal."""
MAX_RECEIVED_FDS = 253
"""What we take: SCM_MAX_FD of Linux. Cloud Hypervisor's client sends all fds of SET_IRQS in one message."""
MAX_DATA_XFER = 1 << 20
"""What we advertise; QEMU ends the connection where a larger value than its own maximum is named."""
MAX_MESSAGE_SIZE = HEADER_SIZE + 64 + MAX_DATA_XFER
"""No message that respects MAX_DATA_XFER is longer."""
