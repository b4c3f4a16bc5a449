"""What a process that holds a function through VFIO says about it to `iolane host dma` and `host faults`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from iolane.model.pci.pcie_id import PcieId


class DmaMapReport(msgspec.Struct, frozen=True):
    """One map that the IOMMU has for the function."""

    iova: int
    size: int
    permission: str
    """r, w, rw"""
    what: str = ""
    """What memory it is, where the holder knows: `guest memory at 0x0`."""


class HeldFunction(msgspec.Struct, frozen=True, kw_only=True):
    """A function that somebody holds."""

    function: str
    """Its address with segment."""
    machine: str
    """The machine that has it."""
    pid: int
    maps: list[DmaMapReport] | None
    """All it reaches now; None where the holder does not know (QEMU's own vfio-pci makes the maps itself)."""


class Holder(Protocol):
    """Something in this process that holds a function."""

    def held(self) -> HeldFunction:
        """The function with its maps now. Called in the control socket's thread."""


HeldBy = Callable[[PcieId], HeldFunction | None]
"""Who holds a function, asked of all iolane processes; None: none of them."""
