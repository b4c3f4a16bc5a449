"""A device's access to memory that was refused."""

from enum import StrEnum

from iolane.errors import IolaneError
from iolane.model.dma.permission import Direction


class FaultReason(StrEnum):
    """Why an access was refused."""

    UNMAPPED = "unmapped"
    READ_ONLY = "read-only"
    """A write to a map that the device may only read."""
    WRITE_ONLY = "write-only"
    """A read from a map that the device may only write."""
    OUT_OF_RANGE = "out of range"
    """Past the end of a map into nothing, or past the 64-bit address space."""
    BUS_MASTER_OFF = "bus mastering is off"
    BROKEN = "the memory file was truncated"
    INDIRECT_FAILED = "the owner of the memory refused"
    """Memory that is only reachable by asking its owner (vfio-user's message DMA), who refused or is gone."""


class DmaFault(IolaneError):  # noqa: N818  the specifications call it a fault
    """A device named memory that it may not touch. Nothing was read or written.

    (Where the memory file turns out truncated, the part before the hole may have been.)
    """

    def __init__(
        self, device: str, iova: int, length: int, direction: Direction, reason: FaultReason
    ) -> None:
        super().__init__(f"{device}: DMA {direction} of {length} bytes at {iova:#x}: {reason}")
        self.device = device
        self.iova = iova
        self.length = length
        self.direction = direction
        self.reason = reason

    def copy(self) -> "DmaFault":
        """The same fault without the traceback, whose frames would keep guest memory mapped."""
        return DmaFault(self.device, self.iova, self.length, self.direction, self.reason)
