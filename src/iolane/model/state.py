"""State as data: one document with everything that makes a device what it is at a moment.

The document is a header (magic, format, length, CRC-32) and a MessagePack body. It says whose state it is, in
    which
version, and holds register storage by name, the floor's and the device's own data. Reading one never runs
    anything, and
believes nothing: names, sizes and types are checked against the device before any of it is taken.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from iolane.errors import IolaneError

MAGIC = b"iolane\0S"
FORMAT = 1
_HEADER = struct.Struct("<8sHHII")
BODY_LIMIT = 1 << 31
CLOCK_LIMIT = 1 << 63


class StateError(IolaneError):
    """A saved state that can't be taken: damaged, newer, or not of this device."""


class DeviceState(msgspec.Struct, forbid_unknown_fields=True):
    """What a device has to remember beside its registers. Subclass it; every field needs a default.

    Fields may be anything msgspec converts: numbers, str, bytes, enums, lists, dicts, other structs. Limits
    that a hostile document must not break are given with `Annotated[int, msgspec.Meta(ge=0, le=63)]`.
    """


class Saved(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a document, also what the functions in `Device.upgrades` get and give.

    Attributes:
        kind: the device class's `state_kind`.
        name: the name that the device bore; for people.
        version: `state_version` of the class that saved it.
        clock_ns: the device's time.
        regions: register storage by name (`Device.storages`).
        extra: the floor's data, interrupts for instance (`Device.save_extra`).
        state: the device's own, its `State` as plain data.
    """

    kind: str
    name: str
    version: int
    clock_ns: int
    regions: dict[str, bytes]
    extra: dict[str, Any]
    state: dict[str, Any]


Upgrade = Callable[[Saved], Saved]
S = TypeVar("S", bound=DeviceState)

_MALFORMED = (msgspec.MsgspecError, ValueError, TypeError, RecursionError, OverflowError, MemoryError)


def encode(saved: Saved) -> bytes:
    """The document."""
    body = msgspec.msgpack.encode(saved, order="deterministic")
    return _HEADER.pack(MAGIC, FORMAT, 0, len(body), zlib.crc32(body)) + body


def decode(data: bytes | bytearray | memoryview) -> Saved:
    """Read a document. Raises StateError for what isn't one."""
    view = memoryview(data)
    if len(view) < _HEADER.size:
        raise StateError(f"a saved state has at least {_HEADER.size} bytes, this has {len(view)}")
    magic, form, reserved, length, checksum = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise StateError("this is no state saved by iolane")
    if form > FORMAT:
        raise StateError(
            f"the saved state has format {form}, known is {FORMAT}", remedy="load it with a newer iolane"
        )
    if form != FORMAT or reserved or length > BODY_LIMIT:
        raise StateError("the saved state's header is damaged")
    body = view[_HEADER.size :]
    if len(body) != length:
        raise StateError(f"the saved state should have {length} bytes after its header, it has {len(body)}")
    if zlib.crc32(body) != checksum:
        raise StateError("the saved state is damaged: its checksum differs")
    try:
        saved = msgspec.msgpack.decode(body, type=Saved)
    except _MALFORMED as error:
        raise StateError(f"the saved state is malformed: {error}") from None
    if not 0 <= saved.clock_ns < CLOCK_LIMIT:
        raise StateError(f"the saved state is malformed: time {saved.clock_ns}")
    return saved


def upgrade(saved: Saved, kind: str, version: int, upgrades: Mapping[int, Upgrade]) -> Saved:
    """Bring a document to `version` of device kind `kind`, step by step."""
    if saved.kind != kind:
        raise StateError(f"the saved state is of a device of kind {saved.kind!r}, not {kind!r}")
    if saved.version > version:
        raise StateError(
            f"the saved state of {kind} has version {saved.version}, this iolane knows up to {version}",
            remedy="load it with the iolane that saved it, or a newer one",
        )
    while saved.version < version:
        step = upgrades.get(saved.version)
        if step is None:
            raise StateError(
                f"the saved state of {kind} has version {saved.version}, which can't be upgraded any more"
            )
        before = saved.version
        try:
            saved = step(saved)
        except Exception as error:
            name = getattr(step, "__name__", "its upgrade")
            raise StateError(f"the saved state of {kind} was not upgraded: {name}: {error!r}") from error
        saved.version = max(saved.version, before + 1)
        if saved.version > version:
            raise StateError(f"the saved state of {kind} was upgraded past version {version}")
    return saved


def to_plain(state: DeviceState) -> dict[str, Any]:
    """A state struct as plain data, bytes kept as they are, keys of dicts as text."""
    plain: dict[str, Any] = msgspec.to_builtins(state, builtin_types=(bytes,), str_keys=True)
    return plain


def from_plain(plain: dict[str, Any], kind: type[S]) -> S:
    """A state struct from plain data, each field checked."""
    try:
        return msgspec.convert(plain, type=kind, strict=True, str_keys=True)
    except _MALFORMED as error:
        raise StateError(f"the saved state is malformed: {error}") from None
