"""Messages from the front end's side: requests out, replies and acknowledgements in."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import Any, Self

from iolane.carriers.descriptors import close_all
from iolane.carriers.vhost_user.protocol import U64, HeaderFlag, ProtocolFeature, Request, bit
from iolane.carriers.vhost_user.rejection import RefusedError
from iolane.carriers.vhost_user.wire import Message, receive, send
from iolane.errors import IolaneError


class VhostUserError(IolaneError):
    """The back end refused a request, is gone, or does not keep to the protocol.

    `errno` is what it answered, 0 where it did not.
    """

    def __init__(self, message: str, *, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class Channel:
    """A connection to a back end, used from one thread.

    Args:
        path: its socket.
        timeout: seconds for a reply.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 10.0) -> None:
        self.path = Path(path)
        self.protocol_features = 0
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(os.fspath(path))
        except OSError as error:
            self.socket.close()
            raise VhostUserError(f"no vhost-user back end at {path}: {error.strerror}") from None

    def negotiated(self, feature: ProtocolFeature) -> bool:
        """Whether a protocol feature was agreed on."""
        return bool(self.protocol_features & bit(feature))

    def send(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, need_reply: bool = False
    ) -> None:
        """Send a request; descriptors stay the caller's."""
        flags = HeaderFlag.NEED_REPLY if need_reply else 0
        try:
            send(self.socket, request, payload, fds, flags=flags)
        except OSError as error:
            raise VhostUserError(f"{_name(request)}: the connection failed: {error}") from None

    def reply(self, request: int) -> Message:
        """Wait for the reply to a request; its descriptors are the caller's."""
        try:
            message = receive(self.socket)
        except TimeoutError:
            raise VhostUserError(f"{_name(request)}: no answer in time") from None
        except (OSError, RefusedError) as error:
            raise VhostUserError(f"{_name(request)}: {error}") from None
        if message is None:
            raise VhostUserError(f"{_name(request)}: the back end closed the connection")
        if message.request != request or not message.flags & HeaderFlag.REPLY:
            close_all(message.fds)
            raise VhostUserError(f"{_name(request)}: an answer to {_name(message.request)}")
        return message

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """A request that has a reply of its own: its payload."""
        self.send(request, payload, fds)
        message = self.reply(request)
        close_all(message.fds)
        return message.payload

    def ask_u64(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """A request that is answered by a number."""
        value: int = unpack(U64, self.ask(request, payload, fds), request)[0]
        return value

    def tell(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """A request without a reply of its own: acknowledged where REPLY_ACK was agreed on, else only
        sent.
        """
        acknowledged = self.negotiated(ProtocolFeature.REPLY_ACK)
        self.send(request, payload, fds, need_reply=acknowledged)
        if not acknowledged:
            return
        message = self.reply(request)
        close_all(message.fds)
        (error,) = unpack(U64, message.payload, request)
        if error:
            text = os.strerror(error) if error < 4096 else hex(error)
            raise VhostUserError(f"{_name(request)}: {text}", errno=error)

    def close(self) -> None:
        """Disconnect."""
        with suppress(OSError):
            self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _name(request: int) -> str:
    return Request(request).name if request in Request.__members__.values() else f"request {request}"


def unpack(layout: Struct, payload: bytes, request: int) -> tuple[Any, ...]:
    """A reply's payload."""
    if len(payload) < layout.size:
        raise VhostUserError(f"{_name(request)}: a reply of {len(payload)} bytes")
    return layout.unpack_from(payload)
