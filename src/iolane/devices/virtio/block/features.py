"""Feature bits of the block device (virtio 1.3, 5.2.3)."""

from __future__ import annotations

from enum import IntEnum


class BlockFeature(IntEnum):
    """VIRTIO_BLK_F_*."""

    SIZE_MAX = 1
    SEG_MAX = 2
    GEOMETRY = 4
    RO = 5
    BLK_SIZE = 6
    FLUSH = 9
    TOPOLOGY = 10
    CONFIG_WCE = 11
    MQ = 12
    DISCARD = 13
    WRITE_ZEROES = 14
    SECURE_ERASE = 16
    ZONED = 17
