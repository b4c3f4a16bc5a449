"""The address of a PCI function."""

from __future__ import annotations

import re
from typing import NamedTuple, Self

from iolane.errors import IolaneError

_PATTERN = re.compile(r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([01][0-9a-fA-F])\.([0-7])")


class PcieId(NamedTuple):
    """Segment, bus, device and function; prints as `0000:01:00.0`."""

    segment: int
    bus: int
    device: int
    function: int

    @classmethod
    def from_string(cls, text: str) -> Self:
        """Parse `0000:01:00.0` or `01:00.0`. Raises `IolaneError` for anything else."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise IolaneError(f"{text!r} is not a PCI address", remedy="write it as 0000:01:00.0 or 01:00.0")
        segment, bus, device, function = (int(part or "0", 16) for part in match.groups())
        return cls(segment, bus, device, function)

    @classmethod
    def from_routing(cls, routing_id: int, segment: int = 0) -> Self:
        """From the 16-bit routing id (requester id) that travels in PCIe packets."""
        return cls(segment, routing_id >> 8 & 0xFF, routing_id >> 3 & 0x1F, routing_id & 7)

    @property
    def routing_id(self) -> int:
        """Bus, device and function in 16 bits (PCI Express Base, 2.2.4.2)."""
        return self.bus << 8 | self.device << 3 | self.function

    def __str__(self) -> str:
        return f"{self.segment:04x}:{self.bus:02x}:{self.device:02x}.{self.function}"
