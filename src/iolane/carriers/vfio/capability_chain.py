"""Capabilities of a function's config space, as they are chained there."""

from __future__ import annotations

from typing import NamedTuple

from iolane.uapi.pci import CAP_LIST_ID, CAP_LIST_NEXT, CFG_SPACE_SIZE, STD_HEADER_SIZEOF, Header, Status

CHAIN_LIMIT = 96
EXTENDED_HEADER = 4


class FoundCapability(NamedTuple):
    """A capability at `offset`; `size` is the room up to whatever comes next in config space."""

    id: int
    offset: int
    size: int
    extended: bool
    version: int = 0


def standard_capabilities(config: bytes) -> list[FoundCapability]:
    """Those in the first 256 bytes, in the order of the chain (PCI Express Base 6.0, 7.5.1.1.11)."""
    if not config[Header.STATUS] & Status.CAP_LIST:
        return []
    offsets: list[int] = []
    position = config[Header.CAPABILITY_LIST] & ~3
    while position >= STD_HEADER_SIZEOF and position not in offsets and len(offsets) < CHAIN_LIMIT:
        offsets.append(position)
        position = config[position + CAP_LIST_NEXT] & ~3
    return [
        FoundCapability(config[offset + CAP_LIST_ID], offset, _room(offset, offsets, CFG_SPACE_SIZE), False)
        for offset in offsets
    ]


def extended_capabilities(config: bytes) -> list[FoundCapability]:
    """Those from 0x100 on, in the order of the chain (7.6.3). One with id 0 stands for one that the kernel
    hides.
    """
    offsets: list[int] = []
    position = CFG_SPACE_SIZE
    while (
        CFG_SPACE_SIZE <= position <= len(config) - EXTENDED_HEADER
        and position not in offsets
        and len(offsets) < CHAIN_LIMIT
    ):
        header = int.from_bytes(config[position : position + 4], "little")
        if header in (0, 0xFFFF_FFFF):
            break
        offsets.append(position)
        position = header >> 20 & ~3
    found = []
    for offset in offsets:
        header = int.from_bytes(config[offset : offset + 4], "little")
        room = _room(offset, offsets, len(config))
        found.append(FoundCapability(header & 0xFFFF, offset, room, True, header >> 16 & 0xF))
    return found


def _room(offset: int, offsets: list[int], end: int) -> int:
    return min([other for other in offsets if other > offset], default=end) - offset
