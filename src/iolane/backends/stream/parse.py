"""Streams as a user names them: `listen:PATH`, `unix:PATH`, `pty[:LINK]`, `file:PATH`, `fd:N[:M]`, `null`."""

from __future__ import annotations

from pathlib import Path

from iolane.backends.stream.base import StreamBackend
from iolane.backends.stream.descriptor import DescriptorPair, FileStream
from iolane.backends.stream.memory import MemoryStream, NullStream
from iolane.backends.stream.pty import PtyStream
from iolane.backends.stream.socket import SocketStream
from iolane.errors import IolaneError

FORMS = "listen:PATH, unix:PATH, pty[:LINK], file:PATH, fd:N[:M], memory or null"


def open_stream(text: str) -> StreamBackend:
    """Open the stream that `text` names; raises IolaneError in one line."""
    kind, _, rest = text.partition(":")
    if kind in ("listen", "unix", "file") and not rest:
        raise IolaneError(f"stream '{text}' needs a path", remedy=f"write {kind}:PATH")
    if kind == "listen":
        return SocketStream(Path(rest).expanduser())
    if kind == "unix":
        return SocketStream(Path(rest).expanduser(), listen=False)
    if kind == "file":
        return FileStream(Path(rest).expanduser())
    if kind == "pty":
        return PtyStream(Path(rest).expanduser() if rest else None)
    if kind == "fd":
        return _descriptors(text, rest)
    if text == "memory":
        return MemoryStream()
    if text == "null":
        return NullStream()
    raise IolaneError(f"'{text}' names no stream", remedy=FORMS)


def _descriptors(text: str, rest: str) -> DescriptorPair:
    numbers = rest.split(":")
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
        raise IolaneError(f"stream '{text}' needs one or two descriptors", remedy="write fd:3 or fd:0:1")
    return DescriptorPair(*(int(number) for number in numbers))
