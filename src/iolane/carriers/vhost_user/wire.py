"""Messages on the socket: header, payload, and the file descriptors that come with the first byte."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from struct import Struct
from typing import Any

from iolane.carriers.descriptors import DESCRIPTOR_SIZE, close_all, descriptors_in, send_message
from iolane.carriers.vhost_user.protocol import (
    HEADER,
    HEADER_SIZE,
    MAX_FDS,
    MAX_PAYLOAD,
    MAX_RECEIVED_FDS,
    U64,
    VERSION,
    VERSION_MASK,
    HeaderFlag,
)
from iolane.carriers.vhost_user.rejection import RefusedError, Rejection

ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_RECEIVED_FDS * DESCRIPTOR_SIZE)


class Message:
    """A message as it came. Descriptors that nobody takes are closed behind it."""

    __slots__ = ("fds", "flags", "payload", "request")

    def __init__(self, request: int, flags: int, payload: bytes, fds: list[int]) -> None:
        self.request = request
        self.flags = flags
        self.payload = payload
        self.fds = fds

    def unpack(self, layout: Struct, *, exact: bool = True) -> tuple[Any, ...]:
        """The fixed part of the payload. Refused if it is shorter, or with `exact` longer."""
        length = len(self.payload)
        if length < layout.size or (exact and length != layout.size):
            raise RefusedError(
                Rejection.PAYLOAD_SIZE, f"request {self.request} has {length} bytes, not {layout.size}"
            )
        return layout.unpack_from(self.payload)

    def u64(self) -> int:
        """The payload as a single 64-bit integer."""
        value: int = self.unpack(U64)[0]
        return value

    def take_fd(self) -> int:
        """The next descriptor; whoever takes it closes it."""
        if not self.fds:
            raise RefusedError(Rejection.FDS_COUNT, f"request {self.request} comes without its descriptor")
        return self.fds.pop(0)

    def close(self) -> None:
        """Close what was not taken."""
        close_all(self.fds)
        self.fds = []


class Reply:
    """What goes back: the payload, and descriptors, which are closed behind it."""

    __slots__ = ("fds", "payload")

    def __init__(self, payload: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        self.payload = payload
        self.fds = fds


def receive(connection: socket.socket) -> Message | None:
    """Wait for a message; None where the peer has closed. Raises RefusedError for what is none, OSError."""
    fds: list[int] = []
    try:
        header, lost = _receive_exactly(connection, HEADER_SIZE, fds)
        if not header:
            return None
        request, flags, size = HEADER.unpack(header)
        if flags & VERSION_MASK != VERSION:
            raise RefusedError(Rejection.MESSAGE_VERSION, f"{flags:#x}")
        if size > MAX_PAYLOAD:
            raise RefusedError(Rejection.MESSAGE_TOO_LONG, f"{size} bytes of request {request}")
        payload, more_lost = _receive_exactly(connection, size, fds) if size else (b"", False)
        if len(payload) < size:
            raise RefusedError(Rejection.MESSAGE_CUT)
        if lost or more_lost or len(fds) > MAX_FDS:
            raise RefusedError(Rejection.FDS_LOST, f"request {request} with {len(fds)}")
    except BaseException:
        close_all(fds)
        raise
    return Message(request, flags, payload, fds)


def _receive_exactly(connection: socket.socket, count: int, fds: list[int]) -> tuple[bytes, bool]:
    """`count` bytes, or none where the peer closed before the first; whether descriptors were lost."""
    data, lost = bytearray(), False
    while len(data) < count:
        part, ancillary, flags, _ = connection.recvmsg(
            count - len(data), ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
        )
        fds += descriptors_in(ancillary)
        lost |= bool(flags & socket.MSG_CTRUNC)
        if not part:
            if data:
                raise RefusedError(Rejection.MESSAGE_CUT)
            break
        data += part
    return bytes(data), lost


def send(
    connection: socket.socket, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, flags: int = 0
) -> None:
    """Send a message; its descriptors stay ours."""
    send_message(connection, HEADER.pack(request, VERSION | flags, len(payload)) + payload, fds)


def send_reply(connection: socket.socket, request: int, reply: Reply) -> None:
    """Answer a request. "Bit 2 is the reply flag - needs to be sent on each reply from the back-end"."""
    try:
        send(connection, request, reply.payload, reply.fds, flags=HeaderFlag.REPLY)
    finally:
        close_all(reply.fds)
