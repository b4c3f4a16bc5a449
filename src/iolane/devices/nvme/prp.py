"""Physical Region Pages: where a command's data is in guest memory (Base 4.1.1)."""

from __future__ import annotations

import struct

from iolane.devices.nvme.spec import CommandError, Status
from iolane.model.dma import DmaFault, DmaSpace

PRP1_LOCATION, PRP2_LOCATION = 24, 32
"""Bytes of the two pointers in a submission queue entry."""

Pieces = list[tuple[int, int]]
"""(iova, length) in order; neighbours are merged."""


def resolve_prps(dma: DmaSpace, prp1: int, prp2: int, length: int, page: int) -> Pieces:
    """Where `length` bytes lie that `prp1` and `prp2` point to.

    The caller bounds `length` by MDTS, and with it the number of lists read: each list page but the first
    holds at least one entry, or the chain ends with Invalid PRP Offset.

    Raises:
        CommandError: PRP Offset Invalid where the specification demands an offset of 0 or an alignment; Data
            Transfer Error where a list can't be read.
    """
    if length <= 0:
        return []
    if prp1 & 3:
        raise _bad_offset(PRP1_LOCATION, prp1)
    first = min(length, page - (prp1 & (page - 1)))
    pieces = [(prp1, first)]
    length -= first
    if length == 0:
        return pieces
    if length <= page:
        if prp2 & (page - 1):
            raise _bad_offset(PRP2_LOCATION, prp2)
        _append(pieces, prp2, length)
        return pieces
    _follow_lists(dma, pieces, prp2, length, page)
    return pieces


def _follow_lists(dma: DmaSpace, pieces: Pieces, pointer: int, length: int, page: int) -> None:
    """The list may start anywhere in its page on a multiple of 8; later lists start at a page's start."""
    if pointer & 7:
        raise _bad_offset(PRP2_LOCATION, pointer)
    while length:
        room = (page - (pointer & (page - 1))) // 8
        wanted = -(-length // page)
        entries = _read_list(dma, pointer, min(room, wanted))
        chained = wanted > room
        for entry in entries[: room - 1] if chained else entries:
            if entry & (page - 1):
                raise _bad_offset(PRP2_LOCATION, entry)
            count = min(length, page)
            _append(pieces, entry, count)
            length -= count
        if chained:
            pointer = entries[-1]
            if pointer & (page - 1):
                raise _bad_offset(PRP2_LOCATION, pointer)


def _read_list(dma: DmaSpace, pointer: int, count: int) -> tuple[int, ...]:
    try:
        data = dma.read(pointer, 8 * count)
    except DmaFault as fault:
        raise CommandError(Status.DATA_TRANSFER_ERROR, f"PRP list: {fault}", location=PRP2_LOCATION) from None
    return struct.unpack(f"<{count}Q", data)


def _append(pieces: Pieces, address: int, length: int) -> None:
    start, size = pieces[-1]
    if start + size == address:
        pieces[-1] = (start, size + length)
    else:
        pieces.append((address, length))


def _bad_offset(location: int, address: int) -> CommandError:
    return CommandError(Status.INVALID_PRP_OFFSET, f"PRP offset of {address:#x}", location=location)
