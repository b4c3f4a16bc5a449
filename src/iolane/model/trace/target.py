"""A place in a region that the guest accesses: its name, its registers, and what was counted there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from iolane.model.region import PlainMemory, Region
from iolane.model.registers import Register

if TYPE_CHECKING:
    from iolane.model.trace.session import Session


class Part(NamedTuple):
    """The part of an access that falls into one register."""

    name: str
    """`bar0.CONTROL`."""
    type: type[Register]
    width: int
    shift: int
    """Bits by which the access's value is shifted up to get the register's."""
    lanes: int
    """Bits of the register that the access touches."""

    @property
    def shown(self) -> str:
        """The name, with the bits where it is not the whole register."""
        if self.lanes == (1 << 8 * self.width) - 1:
            return self.name
        low = (self.lanes & -self.lanes).bit_length() - 1
        return f"{self.name}[{self.lanes.bit_length() - 1}:{low}]"

    def take(self, value: int) -> int:
        """The register's bits out of the access's value."""
        return (value << self.shift if self.shift >= 0 else value >> -self.shift) & self.lanes


class Target:
    """One offset and size in one region."""

    __slots__ = (
        "epoch",
        "last",
        "modelled",
        "name",
        "names",
        "offset",
        "on_read",
        "on_write",
        "parts",
        "reads",
        "region",
        "repeats",
        "since_ns",
        "size",
        "told",
        "writes",
    )

    def __init__(self, region: Region, offset: int, size: int) -> None:
        self.region = region
        self.offset = offset
        self.size = size
        self.parts = _parts(region, offset, size)
        self.modelled = bool(self.parts) or _in_memory(region, offset, size)
        bare = f"{region.name}+{offset:#x}"
        self.name = "+".join(part.shown for part in self.parts) or bare
        self.names = [part.name for part in self.parts] or [bare]
        """What filters see."""
        self.reads = self.writes = 0
        self.on_read: tuple[Session, ...] = ()
        self.on_write: tuple[Session, ...] = ()
        self.last = -1
        """The value of the last read."""
        self.epoch = 0
        """Writes to the region before that."""
        self.repeats = 0
        """Reads in a row that gave it."""
        self.since_ns = 0
        """When the first of them was."""
        self.told = False
        """They were reported as spinning."""

    def fields(self, value: int) -> dict[str, int]:
        """The fields that the access touches, by name; with the register's name where there are several."""
        found: dict[str, int] = {}
        for part in self.parts:
            taken = part.take(value)
            prefix = f"{part.name}." if len(self.parts) > 1 else ""
            for name, field in part.type.field_table.items():
                if field.mask & part.lanes:
                    found[prefix + name] = (taken & field.mask) >> field.lsb
        return found

    def describe(self, value: int) -> str:
        """The fields that aren't 0 as text, by the names of their values."""
        words = []
        for part in self.parts:
            taken = part.take(value)
            described = part.type(taken).describe()
            if len(self.parts) > 1:
                described = f"{part.shown}={taken:#x}{' ' + described if described else ''}"
            if described:
                words.append(described)
        return ", ".join(words)


def _parts(region: Region, offset: int, size: int) -> tuple[Part, ...]:
    parts = []
    position, end = offset, offset + size
    while position < end:
        located = region.locate(position)
        if located is None:
            position += 1
            continue
        spec: Any = located.place.spec
        stop = min(located.offset + spec.width, end)
        lanes = ((1 << 8 * (stop - position)) - 1) << 8 * (position - located.offset)
        parts.append(Part(located.name, spec.type, spec.width, 8 * (offset - located.offset), lanes))
        position = stop
    return tuple(parts)


def _in_memory(region: Region, offset: int, size: int) -> bool:
    return any(
        isinstance(piece.content, PlainMemory)
        and piece.offset < offset + size
        and offset < piece.offset + piece.size
        for piece in region.pieces
    )
