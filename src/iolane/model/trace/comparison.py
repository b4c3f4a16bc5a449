"""What two values of a register, or two pieces of memory, have different, by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from iolane.model.trace.recorded import RecordedEvent
from iolane.model.trace.recording import MemoryField
from iolane.model.trace.target import Part, Target

Key = tuple[object, ...]
_INDEX = re.compile(r"\[\d+\]$")


class Difference(NamedTuple):
    """A place in which the model differs."""

    line: int
    """Of the recording."""
    place: str
    """`bar0.CAP.TO`, `bar0.VS`, `interrupt.MSIX[1]`, `memory.cq1.STATUS`."""
    recorded: str
    replayed: str

    @property
    def names(self) -> tuple[str, ...]:
        """The place, and what it is a part of: `bar0.CAP` covers its fields."""
        return self.place, self.place.rpartition(".")[0] or self.place

    def __str__(self) -> str:
        return f"line {self.line}: {self.place}: recorded {self.recorded}, the model has {self.replayed}"


def compare_registers(line: int, target: Target, recorded: int, replayed: int) -> Iterator[Difference]:
    """By field; what is in no field by register; what is in no register by offset."""
    if not target.parts:
        yield Difference(line, target.name, f"{recorded:#x}", f"{replayed:#x}")
        return
    rest = recorded ^ replayed
    for part in target.parts:
        yield from _compare_part(line, part, part.take(recorded), part.take(replayed))
        rest &= ~(part.lanes >> part.shift if part.shift >= 0 else part.lanes << -part.shift)
    if rest:
        place = f"{target.region.name}+{target.offset:#x}"
        yield Difference(line, place, f"{recorded:#x}", f"{replayed:#x}")


def _compare_part(line: int, part: Part, recorded: int, replayed: int) -> Iterator[Difference]:
    changed = recorded ^ replayed
    for name, field in part.type.field_table.items():
        if changed & field.mask:
            values = [field.describe((value & field.mask) >> field.lsb) for value in (recorded, replayed)]
            yield Difference(line, f"{part.name}.{name}", *values)
            changed &= ~field.mask
    if changed:
        yield Difference(line, part.name, f"{recorded:#x}", f"{replayed:#x}")


class MemoryComparison:
    """Compares memory that the device left. Records with a key are found by it, wherever and whenever the
    model left them: a device completes what it was asked for in an order of its own. Fields that are `placed`
    are compared where they are; where they differ, and not of the same record, the model left nothing yet.
    """

    def __init__(self) -> None:
        self._recorded: dict[Key, list[Record]] = {}
        self._replayed: dict[Key, list[Record]] = {}

    def compare(self, event: RecordedEvent, recorded: bytes, replayed: bytes) -> Iterator[Difference]:
        """By field of each record; without fields byte by byte."""
        place = f"memory.{_INDEX.sub('', event.name)}"
        if not event.fields:
            if recorded != replayed:
                first = next(n for n, (a, b) in enumerate(zip(recorded, replayed, strict=True)) if a != b)
                shown = [data[first : first + 16].hex() for data in (recorded, replayed)]
                yield Difference(event.line, place, *shown)
            return
        stride = event.stride or len(recorded)
        for start in range(0, len(recorded), stride):
            theirs = Record(event, place, recorded[start : start + stride])
            ours = Record(event, place, replayed[start : start + stride])
            if not event.key:
                yield from theirs.compare(ours)
                continue
            misplaced = list(theirs.compare_placed(ours))
            self._recorded.setdefault(theirs.key, []).append(theirs)
            if not misplaced or theirs.key == ours.key:
                yield from misplaced
                self._replayed.setdefault(ours.key, []).append(ours)
            for key in {theirs.key, ours.key}:
                yield from self._match(key)

    def _match(self, key: Key) -> Iterator[Difference]:
        recorded, replayed = self._recorded.get(key, []), self._replayed.get(key, [])
        while recorded and replayed:
            yield from recorded.pop(0).compare(replayed.pop(0))

    def rest(self) -> Iterator[Difference]:
        """Records that the model never left."""
        for records in self._recorded.values():
            for record in records:
                yield Difference(record.event.line, record.place, record.shown, "nothing of the kind")


class Record(NamedTuple):
    """A record in memory."""

    event: RecordedEvent
    place: str
    data: bytes

    @property
    def key(self) -> Key:
        """What tells it from others."""
        return self.place, *(self._value(name) for name in self.event.key)

    @property
    def shown(self) -> str:
        """Its key for a person."""
        return ", ".join(f"{name} {self._value(name)}" for name in self.event.key)

    def _value(self, name: str) -> int:
        return next((_take(item, self.data) for item in self.event.parts if item.name == name), 0)

    def compare(self, other: Record) -> Iterator[Difference]:
        """The fields in which they differ, but for those that go with the place."""
        yield from self._compare(other, placed=False)

    def compare_placed(self, other: Record) -> Iterator[Difference]:
        """The fields that go with the place, in which they differ."""
        yield from self._compare(other, placed=True)

    def _compare(self, other: Record, *, placed: bool) -> Iterator[Difference]:
        for item in self.event.parts:
            values = _take(item, self.data), _take(item, other.data)
            if values[0] != values[1] and placed == (item.name in self.event.placed):
                place = f"{self.place}.{item.name}"
                yield Difference(self.event.line, place, f"{values[0]:#x}", f"{values[1]:#x}")


def _take(item: MemoryField, record: bytes) -> int:
    value = int.from_bytes(record[item.offset : item.offset + item.size], "little") & item.mask
    return value >> ((item.mask & -item.mask).bit_length() - 1) if item.mask else 0
