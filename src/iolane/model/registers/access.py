"""What a guest may do to the bits of a register."""

from __future__ import annotations

from enum import StrEnum


class Access(StrEnum):
    """Access kind of a register or of one field, as the guest sees it (the device itself may set anything).

    The names are those of PCI Express Base 7.4 where it has one.
    """

    RW = "rw"
    """Reads return what was written."""
    RO = "ro"
    """Writes are ignored."""
    WO = "wo"
    """Reads return 0; the write hook sees what was written."""
    W1C = "w1c"
    """Writing 1 clears the bit, writing 0 leaves it."""
    RC = "rc"
    """Reading clears the bytes that were read; writes are ignored."""
    RSVDP = "rsvdp"
    """Reserved and preserved: reads return the reset value, writes are ignored."""
