"""Maps as compiled code sees them: by their address in this process."""

from __future__ import annotations

from typing import NamedTuple

from iolane.memory.mapping import Mapping


class HostRegion(NamedTuple):
    """A run of guest memory that is mapped here.

    Attributes:
        start, size: IOVA of the first byte, and bytes.
        address: of the first byte in this process.
        writable: the device may write.
        broken_address: of the 32-bit flag that turns 1 when the file behind was cut.
        keep: the memory stays mapped as long as this lives.
    """

    start: int
    size: int
    address: int
    writable: bool
    broken_address: int
    keep: Mapping
