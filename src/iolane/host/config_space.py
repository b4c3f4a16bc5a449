"""A function's config space as sysfs gives it: whole to root, the first 64 bytes to everybody."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from iolane.uapi.pci import (
    CAP_LIST_NEXT,
    CFG_SPACE_SIZE,
    STD_HEADER_SIZEOF,
    Capability,
    Header,
    Msi,
    MsiFlags,
    Msix,
    MsixFlags,
    Status,
)
from iolane.uapi.pcie import Express

_HEADER_TYPE = 0x7F
_FIRST_POINTER_MASK = 0xFC
_EXTENDED_POINTER_MASK = 0xFFC
_TYPE_SHIFT, _TYPE_MASK = 4, 0xF
_ENDED = (0x0000_0000, 0xFFFF_FFFF)


@dataclass(frozen=True)
class ConfigSpace:
    """Bytes of a config space, read defensively: a broken function may answer anything."""

    data: bytes = field(repr=False)

    @property
    def is_whole(self) -> bool:
        """Whether the capabilities can be seen."""
        return len(self.data) >= CFG_SPACE_SIZE

    @property
    def answers(self) -> bool:
        """False when the function does not answer: reads return all ones (PCI Express Base, 2.3.2).

        The vendor id alone does not tell: it reads so in virtual functions (9.3.4.1.1).
        """
        header = self.data[:STD_HEADER_SIZEOF]
        return header == b"" or any(byte != 0xFF for byte in header)

    @property
    def header_type(self) -> int:
        """0: endpoint, 1: bridge, 2: CardBus bridge."""
        return self.byte(Header.HEADER_TYPE) & _HEADER_TYPE

    @property
    def express_type(self) -> int | None:
        """Device/port type (`ExpressType`) of the PCI Express capability; None without one."""
        at = self.capabilities().get(Capability.EXP)
        return None if at is None else self.word(at + Express.FLAGS) >> _TYPE_SHIFT & _TYPE_MASK

    @property
    def msix_vectors(self) -> int | None:
        """Size of the MSI-X table, 0 without; None where the capabilities can't be seen."""
        if not self.is_whole:
            return None
        at = self.capabilities().get(Capability.MSIX)
        return 0 if at is None else (self.word(at + Msix.FLAGS) & MsixFlags.QSIZE) + 1

    @property
    def msi_vectors(self) -> int | None:
        """Vectors that MSI offers, 0 without; None where the capabilities can't be seen."""
        if not self.is_whole:
            return None
        at = self.capabilities().get(Capability.MSI)
        return 0 if at is None else 1 << ((self.word(at + Msi.FLAGS) & MsiFlags.QMASK) >> 1)

    def byte(self, offset: int) -> int:
        """One byte, 0 where nothing was read."""
        return self.data[offset] if offset < len(self.data) else 0

    def word(self, offset: int) -> int:
        """16 bits."""
        return self.byte(offset) | self.byte(offset + 1) << 8

    def long(self, offset: int) -> int:
        """32 bits."""
        return self.word(offset) | self.word(offset + 2) << 16

    def capabilities(self) -> dict[int, int]:
        """Capability id -> offset of the first that has it; bounded, since the list may be a ring."""
        return dict(reversed(list(self.all_capabilities())))

    def extended_capabilities(self) -> dict[int, int]:
        """Extended capability id -> offset."""
        return dict(reversed(list(self.all_extended_capabilities())))

    def all_capabilities(self) -> Iterator[tuple[int, int]]:
        """Id and offset of each, in the order of the list."""
        if not self.is_whole or not self.word(Header.STATUS) & Status.CAP_LIST:
            return
        seen: set[int] = set()
        at = self.byte(Header.CAPABILITY_LIST) & _FIRST_POINTER_MASK
        while at >= STD_HEADER_SIZEOF and at not in seen:
            seen.add(at)
            yield self.byte(at), at
            at = self.byte(at + CAP_LIST_NEXT) & _FIRST_POINTER_MASK

    def all_extended_capabilities(self) -> Iterator[tuple[int, int]]:
        """Id and offset of each, in the order of the list."""
        seen: set[int] = set()
        at = CFG_SPACE_SIZE
        while CFG_SPACE_SIZE <= at < len(self.data) and at not in seen:
            header = self.long(at)
            if header in _ENDED:
                return
            seen.add(at)
            yield header & 0xFFFF, at
            at = header >> 20 & _EXTENDED_POINTER_MASK
