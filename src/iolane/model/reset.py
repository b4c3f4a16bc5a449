"""Kinds of reset."""

from enum import IntEnum


class ResetKind(IntEnum):
    """Resets of a function (PCI Express Base, 6.6)."""

    CONVENTIONAL = 0
    """Of the whole machine, or by the carrier's reset command."""
    FLR = 1
    """Function Level Reset, which the guest asks for in Device Control."""
