"""Scatter Gather Lists: where an I/O command's data is in guest memory (Base 4.1.2).

Processed are Data Block, Segment and Last Segment descriptors with addresses. The others (Bit Bucket, Keyed,
Transport, offsets) are not advertised, and end a command with SGL Descriptor Type Invalid.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum

from iolane.devices.nvme.prp import Pieces
from iolane.devices.nvme.spec import CommandError, Status
from iolane.model.dma import DmaFault, DmaSpace

DESCRIPTOR = struct.Struct("<QI3xB")
"""Address, length in bytes, SGL Identifier of a descriptor (Base 4.1.2)."""
MAX_DESCRIPTORS = 1024
"""Of one command, in all its segments. The specification has no limit; the largest transfer in pages of 4 KiB
takes 257 and links.
"""
SGL1_LOCATION = 24
"""Byte of the first descriptor in a submission queue entry."""
SGLS = 1 << 0 | 1 << 18
"""SGL Support (Base 5.17.2.1): Data Blocks of any alignment and length; a list may describe more than the
command transfers.
"""
_SPACE = 1 << 64
_Descriptor = tuple[int, int, int]


class SglIdentifier(IntEnum):
    """Descriptor type in bits 7:4, and sub type 0h, address, in bits 3:0 (Base 4.1.2)."""

    DATA_BLOCK = 0x00
    SEGMENT = 0x20
    LAST_SEGMENT = 0x30


def command_descriptor(dptr1: int, dptr2: int) -> _Descriptor:
    """SGL1 of a command, whose two halves are where PRP1 and PRP2 are else (Base 3.3.3.1)."""
    return dptr1, dptr2 & 0xFFFF_FFFF, dptr2 >> 56


def resolve_sgl(dma: DmaSpace, dptr1: int, dptr2: int, length: int) -> Pieces:
    """Where `length` bytes lie that the descriptor in the command leads to.

    What a list describes beyond them is not looked at (SGLS bit 18).

    Raises:
        CommandError: with the status that the specification has for what is wrong with the list (Base
            3.3.3.2.1); Data Transfer Error where a segment can't be read.
    """
    pieces: Pieces = []
    segment: list[_Descriptor] = [command_descriptor(dptr1, dptr2)]
    budget = MAX_DESCRIPTORS
    in_last = False
    while length > 0:
        length -= _describe(pieces, segment, length)
        if length == 0:
            break
        address, size, identifier = segment[-1]
        if identifier == SglIdentifier.DATA_BLOCK:
            raise _error(Status.DATA_SGL_LENGTH_INVALID, f"the list ends {length} bytes too early")
        if in_last:
            raise _error(Status.INVALID_SGL_SEGMENT, "the last segment leads to another")
        in_last = identifier == SglIdentifier.LAST_SEGMENT
        segment = _read_segment(dma, address, size, budget)
        budget -= len(segment)
    return pieces


def _describe(pieces: Pieces, segment: list[_Descriptor], length: int) -> int:
    """Add a segment's Data Blocks, until there are `length` bytes. Returns how many there are."""
    left, end = length, len(segment)
    for number, (address, size, identifier) in enumerate(segment, 1):
        if identifier == SglIdentifier.DATA_BLOCK:
            if address + size > _SPACE:
                raise _error(Status.DATA_SGL_LENGTH_INVALID, f"Data Block of {size} bytes at {address:#x}")
            count = min(size, left)
            if count:  # one of no bytes is valid
                _append(pieces, address, count)
                left -= count
                if not left:
                    break
        elif identifier not in (SglIdentifier.SEGMENT, SglIdentifier.LAST_SEGMENT):
            raise _error(Status.SGL_TYPE_INVALID, f"SGL Identifier {identifier:#04x}")
        elif number != end:
            raise _error(Status.INVALID_SGL_COUNT, f"descriptor {number} of {end} leads to another segment")
    return length - left


def _append(pieces: Pieces, address: int, length: int) -> None:
    start, size = pieces[-1] if pieces else (0, 0)
    if size and start + size == address:
        pieces[-1] = (start, size + length)
    else:
        pieces.append((address, length))


def _read_segment(dma: DmaSpace, address: int, size: int, budget: int) -> list[_Descriptor]:
    """The descriptors of a segment. An address that is no qword's has no status of its own."""
    if size == 0 or size % DESCRIPTOR.size or address & 7:
        raise _error(Status.INVALID_SGL_SEGMENT, f"segment of {size} bytes at {address:#x}")
    if address + size > _SPACE:
        raise _error(Status.DATA_SGL_LENGTH_INVALID, f"segment of {size} bytes at {address:#x}")
    if size // DESCRIPTOR.size > budget:
        raise _error(Status.INVALID_SGL_COUNT, f"more than {MAX_DESCRIPTORS} descriptors")
    try:
        data = dma.read(address, size)
    except DmaFault as fault:
        raise _error(Status.DATA_TRANSFER_ERROR, f"SGL segment: {fault}") from None
    return list(parse_segment(data))


def parse_segment(data: bytes) -> Iterable[_Descriptor]:
    """Address, length and SGL Identifier of each descriptor."""
    return DESCRIPTOR.iter_unpack(data)


def _error(status: Status, message: str) -> CommandError:
    return CommandError(status, message, location=SGL1_LOCATION)
