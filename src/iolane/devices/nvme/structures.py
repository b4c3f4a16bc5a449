"""Structures in guest memory that every part of the controller shares."""

from __future__ import annotations

import struct
from typing import NamedTuple

ENTRY = struct.Struct("<BBHIIIQQQ6I")
COMPLETION = struct.Struct("<IIHHHH")
DSM_RANGE = struct.Struct("<IIQ")
"""Context attributes, length in logical blocks, starting LBA (NVM Command Set 3.2.3, Figure 37)."""


class SubmissionEntry(NamedTuple):
    """A command (Base 3.3.3.1, Figure 89): the common fields and Command Dwords 10 to 15."""

    opcode: int
    flags: int
    cid: int
    nsid: int
    cdw2: int
    cdw3: int
    mptr: int
    prp1: int
    prp2: int
    cdw10: int
    cdw11: int
    cdw12: int
    cdw13: int
    cdw14: int
    cdw15: int

    @property
    def lba(self) -> int:
        """Starting LBA of the commands that have one."""
        return self.cdw10 | self.cdw11 << 32

    def pack(self) -> bytes:
        """The 64 bytes in the queue."""
        return ENTRY.pack(*self)


def parse_entries(data: bytes) -> list[SubmissionEntry]:
    """The commands in a piece of a submission queue."""
    return [SubmissionEntry._make(fields) for fields in ENTRY.iter_unpack(data)]


class CompletionEntry(NamedTuple):
    """A completion as a host reads it (Base 3.3.3.2, Figure 91)."""

    result: int
    reserved: int
    sq_head: int
    sqid: int
    cid: int
    status_phase: int

    @property
    def phase(self) -> int:
        return self.status_phase & 1

    @property
    def status(self) -> int:
        """Status Code Type and Status Code, comparable with `Status`."""
        return self.status_phase >> 1 & 0x7FF

    @property
    def more(self) -> bool:
        return bool(self.status_phase >> 14 & 1)

    @property
    def do_not_retry(self) -> bool:
        return bool(self.status_phase >> 15)

    @classmethod
    def parse(cls, data: bytes) -> CompletionEntry:
        """From the 16 bytes in the queue."""
        return cls._make(COMPLETION.unpack(data))


class Page:
    """A structure that is built field by field, little-endian, zero where nothing is put."""

    def __init__(self, size: int = 4096) -> None:
        self.data = bytearray(size)

    def put(self, offset: int, size: int, value: int) -> None:
        """An unsigned number of `size` bytes."""
        self.data[offset : offset + size] = value.to_bytes(size, "little")

    def text(self, offset: int, size: int, value: str) -> None:
        """ASCII, left justified, padded with spaces (Base 1.4.2)."""
        self.raw(offset, value.encode("ascii", "replace")[:size].ljust(size))

    def raw(self, offset: int, data: bytes) -> None:
        """Bytes as they are."""
        self.data[offset : offset + len(data)] = data

    def __bytes__(self) -> bytes:
        return bytes(self.data)
