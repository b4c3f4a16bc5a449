"""Virtio's numbers (virtio 1.3; linux/virtio_*.h). Members bear the headers' names, less the prefix that the
class stands for. A test compares them with the headers.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

VENDOR_ID = 0x1AF4
DEVICE_ID_BASE = 0x1040
"""PCI device id of a modern device: this plus the virtio id (4.1.2)."""
NO_VECTOR = 0xFFFF
"""VIRTIO_MSI_NO_VECTOR (4.1.5.1.2)."""


class DeviceType(IntEnum):
    """VIRTIO_ID_*: kinds of device (5)."""

    NET = 1
    BLOCK = 2
    CONSOLE = 3
    RNG = 4
    BALLOON = 5
    SCSI = 8
    VSOCK = 19
    FS = 26


class DescriptorFlag(IntFlag):
    """VRING_DESC_F_* (2.7.5)."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4


AVAIL_F_NO_INTERRUPT = 1
"""VRING_AVAIL_F_NO_INTERRUPT (2.7.6)."""
USED_F_NO_NOTIFY = 1
"""VRING_USED_F_NO_NOTIFY (2.7.8)."""


class PciStructure(IntEnum):
    """VIRTIO_PCI_CAP_*: what a virtio structure capability leads to (4.1.4)."""

    COMMON_CFG = 1
    NOTIFY_CFG = 2
    ISR_CFG = 3
    DEVICE_CFG = 4
    PCI_CFG = 5


class BlockRequest(IntEnum):
    """VIRTIO_BLK_T_* (5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class BlockStatus(IntEnum):
    """VIRTIO_BLK_S_* (5.2.6)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


BLK_ID_BYTES = 20
"""VIRTIO_BLK_ID_BYTES: the length of the device id string (5.2.6)."""
BLK_WRITE_ZEROES_FLAG_UNMAP = 1
"""VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP."""


class ConsoleEvent(IntEnum):
    """VIRTIO_CONSOLE_*: control messages (5.3.6.2)."""

    DEVICE_READY = 0
    PORT_ADD = 1
    PORT_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


CONSOLE_BAD_ID = 0xFFFF_FFFF
"""VIRTIO_CONSOLE_BAD_ID: a port that does not exist."""
