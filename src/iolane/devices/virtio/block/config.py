"""Configuration of the block device (virtio 1.3, 5.2.4)."""

from __future__ import annotations

from iolane.model.registers import Register8, Register16, Register32, Register64, RegisterMap, register

SECTOR = 512
"""The unit of sectors everywhere, whatever `BLK_SIZE` says."""
SEGMENTS = 254
"""Data segments of a request at most; header and status come on top."""
DISCARD_SEGMENTS = 16
DISCARD_SECTORS = 1 << 22
ZEROES_SECTORS = 1 << 16
"""A segment of zeroes may really have to be written: 32 MiB."""


class BlockConfig(RegisterMap):
    """struct virtio_blk_config, as far as it is offered."""

    CAPACITY = register(0x00, Register64, access="ro", doc="in sectors of 512 bytes")
    SIZE_MAX = register(0x08, Register32, access="ro")
    SEG_MAX = register(0x0C, Register32, access="ro")
    CYLINDERS = register(0x10, Register16, access="ro")
    HEADS = register(0x12, Register8, access="ro")
    SECTORS = register(0x13, Register8, access="ro")
    BLK_SIZE = register(0x14, Register32, access="ro")
    PHYSICAL_BLOCK_EXP = register(0x18, Register8, access="ro")
    ALIGNMENT_OFFSET = register(0x19, Register8, access="ro")
    MIN_IO_SIZE = register(0x1A, Register16, access="ro")
    OPT_IO_SIZE = register(0x1C, Register32, access="ro")
    WRITEBACK = register(0x20, Register8, doc="0: a write is safe before it completes")
    NUM_QUEUES = register(0x22, Register16, access="ro")
    MAX_DISCARD_SECTORS = register(0x24, Register32, access="ro")
    MAX_DISCARD_SEG = register(0x28, Register32, access="ro")
    DISCARD_SECTOR_ALIGNMENT = register(0x2C, Register32, access="ro")
    MAX_WRITE_ZEROES_SECTORS = register(0x30, Register32, access="ro")
    MAX_WRITE_ZEROES_SEG = register(0x34, Register32, access="ro")
    WRITE_ZEROES_MAY_UNMAP = register(0x38, Register8, access="ro")
