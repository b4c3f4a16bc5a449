"""Reading a recording."""

from __future__ import annotations

import os
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from iolane.errors import IolaneError
from iolane.model.trace.recording import LARGEST_PIECE, VERSION, MemoryField

LONGEST_LINE = 4 * LARGEST_PIECE
U64 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 64)]


class RecordedEvent(msgspec.Struct, forbid_unknown_fields=True):
    """A line of a recording; which fields count depends on `op`."""

    op: Literal["read", "write", "interrupt", "map", "unmap", "reset", "given", "left", "end"]
    at: int = 0
    region: str = ""
    offset: Annotated[int, msgspec.Meta(ge=0)] = 0
    size: Annotated[int, msgspec.Meta(ge=0)] = 0
    value: Annotated[int, msgspec.Meta(ge=0)] = 0
    register: str = ""
    seen: int | None = None
    dropped: bool = False
    in_memory: bool = False
    kind: str = ""
    vector: Annotated[int, msgspec.Meta(ge=0, lt=2048)] = 0
    iova: Annotated[int, msgspec.Meta(ge=0)] = 0
    permission: Annotated[int, msgspec.Meta(ge=0, le=3)] = 0
    data: str = ""
    name: str = ""
    fields: list[tuple[str, int, int, int]] = []
    stride: Annotated[int, msgspec.Meta(ge=0)] = 0
    key: list[str] = []
    placed: list[str] = []
    events: int = 0
    lost: int = 0
    line: int = 0

    @property
    def content(self) -> bytes:
        """Memory of `given` and `left`."""
        return b64decode(self.data)

    @property
    def parts(self) -> list[MemoryField]:
        """What the memory is made of."""
        return [MemoryField(*each) for each in self.fields]


class Head(msgspec.Struct, forbid_unknown_fields=True):
    """The first line."""

    recording: int
    device: str
    regions: dict[str, int] = {}


@dataclass
class Recording:
    """A recording that was read."""

    path: Path
    head: Head
    events: list[RecordedEvent] = field(default_factory=list)
    lost: int = 0
    complete: bool = False
    """Its end is there: whoever recorded closed it."""


def read_recording(path: str | os.PathLike[str]) -> Recording:
    """Read a recording; a torn last line is left out, as after a crash.

    Raises:
        IolaneError: it is none, is of a newer version, or line N of it is damaged.
    """
    where = Path(path)
    try:
        with where.open("rb") as file:
            lines = _lines(where, file.read())
    except OSError as error:
        raise IolaneError(f"{where} can't be read: {error.strerror}") from None
    try:
        head = msgspec.json.decode(next(lines)[1], type=Head)
    except (msgspec.MsgspecError, StopIteration, UnicodeDecodeError):
        raise IolaneError(
            f"{where} is no recording", remedy="iolane run --pass ...,record=FILE makes one"
        ) from None
    if head.recording > VERSION:
        raise IolaneError(
            f"{where} is a recording of version {head.recording}, this iolane knows {VERSION}",
            remedy="use the iolane that made it, or a newer one",
        )
    found = Recording(where, head)
    decoder = msgspec.json.Decoder(RecordedEvent)
    for number, line in lines:
        event = _decode(where, decoder, number, line)
        if event.op == "end":
            found.lost, found.complete = event.lost, True
            break
        found.events.append(event)
    return found


def _lines(path: Path, data: bytes) -> Iterator[tuple[int, bytes]]:
    whole, newline, _ = data.rpartition(b"\n")
    if not newline:
        return
    for number, line in enumerate(whole.split(b"\n"), 1):
        if len(line) > LONGEST_LINE:
            raise IolaneError(f"{path}, line {number}: {len(line)} bytes are no event")
        yield number, line


def _decode(
    path: Path, decoder: msgspec.json.Decoder[RecordedEvent], number: int, line: bytes
) -> RecordedEvent:
    try:
        event = decoder.decode(line)
        event.line = number
        if event.op in ("read", "write") and (
            event.size not in (1, 2, 4, 8) or event.value >= 1 << 8 * event.size
        ):
            raise ValueError(f"{event.value:#x} in {event.size} bytes")
        b64decode(event.data, validate=True)
    except (msgspec.MsgspecError, ValueError, Base64Error) as error:
        raise IolaneError(f"{path}, line {number}: {error}") from None
    return event
