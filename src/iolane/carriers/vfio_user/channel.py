"""Messages from the client's side: commands out, replies in, the server's own commands answered."""

from __future__ import annotations

import errno
import os
import select
import socket
from array import array
from collections.abc import Sequence
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import Any, NamedTuple, Self

from iolane.carriers.descriptors import close_all, send_message
from iolane.carriers.vfio_user.protocol import (
    DMA_ACCESS,
    HEADER,
    HEADER_SIZE,
    MAX_MESSAGE_SIZE,
    MAX_MSG_FDS,
    TYPE_COMMAND,
    TYPE_MASK,
    Command,
    HeaderFlag,
)
from iolane.carriers.vfio_user.version import Peer
from iolane.carriers.vfio_user.wire import error_reply, reply_header
from iolane.errors import IolaneError

COMMANDS = frozenset(Command)


class VfioUserError(IolaneError):
    """The server refused a command, or does not keep to the protocol. `errno` is its answer, 0 for the
    latter.
    """

    def __init__(self, message: str, *, errno: int = 0, command: int = 0) -> None:
        super().__init__(message)
        self.errno = errno
        self.command = command


class Message(NamedTuple):
    """A message as it came."""

    id: int
    command: int
    flags: int
    error: int
    payload: bytes
    fds: tuple[int, ...]


class Channel:
    """A connection to a server: sends commands, waits for replies, one at a time, from one thread.

    Commands that the server sends meanwhile (DMA_READ, DMA_WRITE) are answered from `memory`.

    Args:
        path: the server's socket.
        timeout: seconds for a reply; QEMU's default is 5.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 5.0) -> None:
        self.path = Path(path)
        self.peer = Peer()
        self.served = 0
        """Commands of the server that were answered."""
        self._next_id = 0
        self.memory: dict[int, memoryview] = {}
        """DMA address -> memory that the server reaches by messages."""
        self._twin: socket.socket | None = None
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(os.fspath(path))
        except OSError as error:
            self.socket.close()
            raise VfioUserError(f"no vfio-user server at {path}: {error.strerror}") from None

    def use_twin(self, fd: int) -> None:
        """The server's commands come on a socket of their own, which this owns from now on."""
        self._twin = socket.socket(fileno=fd)
        self._twin.settimeout(self.socket.gettimeout())

    def send(
        self, command: int, payload: bytes = b"", *, fds: Sequence[int] = (), no_reply: bool = False
    ) -> int:
        """Send a command; returns its message ID."""
        self._next_id = (self._next_id + 1) & 0xFFFF
        flags = TYPE_COMMAND | (HeaderFlag.NO_REPLY if no_reply else 0)
        header = HEADER.pack(self._next_id, command, HEADER_SIZE + len(payload), flags, 0)
        try:
            send_message(self.socket, header + payload, fds)
        except OSError as error:
            raise VfioUserError(f"the connection failed: {error}", command=command) from None
        return self._next_id

    def receive(self, connection: socket.socket | None = None) -> Message:
        """The next message, whatever it is."""
        source = connection or self.socket
        header, fds = _receive_exactly(source, HEADER_SIZE)
        message_id, command, size, flags, error = HEADER.unpack(header)
        if not HEADER_SIZE <= size <= MAX_MESSAGE_SIZE:
            close_all(fds)
            raise VfioUserError(f"the server sent a message of {size} bytes")
        payload, more = _receive_exactly(source, size - HEADER_SIZE)
        return Message(message_id, command, flags, error, payload, (*fds, *more))

    def wait(self, message_id: int, command: int) -> Message:
        """The reply to a command; what the server asks before it is answered."""
        while True:
            message = self._next_while_serving()
            if message.flags & TYPE_MASK == TYPE_COMMAND:
                self._serve(message, self.socket)
                continue
            if message.id != message_id or message.command != command:
                close_all(message.fds)
                raise VfioUserError(f"a reply to message {message.id}, not to {message_id}", command=command)
            if message.flags & HeaderFlag.ERROR:
                close_all(message.fds)
                name = Command(command).name if command in COMMANDS else str(command)
                text = os.strerror(message.error) if message.error else "no reason given"
                raise VfioUserError(f"{name}: {text}", errno=message.error, command=command)
            return message

    def _next_while_serving(self) -> Message:
        """The next message on the main socket; a twin socket is served until it comes."""
        if self._twin is not None:
            while True:
                ready, _, _ = select.select([self.socket, self._twin], [], [], self.socket.gettimeout())
                if self._twin not in ready:
                    break
                self._serve(self.receive(self._twin), self._twin)
        return self.receive()

    def request(self, command: int, payload: bytes = b"", *, fds: Sequence[int] = ()) -> bytes:
        """Send a command and return its reply's payload. Raises VfioUserError for an error reply."""
        message = self.exchange(command, payload, fds=fds)
        close_all(message.fds)
        return message.payload

    def exchange(self, command: int, payload: bytes = b"", *, fds: Sequence[int] = ()) -> Message:
        """Send a command and return its reply; descriptors in it are the caller's."""
        return self.wait(self.send(command, payload, fds=fds), command)

    @staticmethod
    def unpack(layout: Struct, payload: bytes, command: Command) -> tuple[Any, ...]:
        if len(payload) < layout.size:
            raise VfioUserError(f"{command.name}: a reply of {len(payload)} bytes", command=command)
        return layout.unpack_from(payload)

    # The server's commands.

    def serve_one(self) -> None:
        """Wait for one command of the server (DMA_READ, DMA_WRITE) and answer it."""
        source = self._twin or self.socket
        message = self.receive(source)
        if message.flags & TYPE_MASK != TYPE_COMMAND:
            raise VfioUserError(f"a reply to message {message.id}, which is not waited for")
        self._serve(message, source)

    def _serve(self, message: Message, source: socket.socket) -> None:
        close_all(message.fds)
        self.served += 1
        answer = self._access(message)
        if answer is None:
            send_message(source, error_reply(message.id, message.command, errno.EINVAL))
        else:
            send_message(source, reply_header(message.id, message.command, len(answer)) + answer)

    def _access(self, message: Message) -> bytes | None:
        if len(message.payload) < DMA_ACCESS.size:
            return None
        address, count = DMA_ACCESS.unpack_from(message.payload)
        for start, memory in self.memory.items():
            if start <= address and address + count <= start + memory.nbytes:
                part = memory[address - start : address - start + count]
                break
        else:
            return None
        if message.command == Command.DMA_READ:
            return DMA_ACCESS.pack(address, count) + bytes(part)
        if message.command == Command.DMA_WRITE and len(message.payload) == DMA_ACCESS.size + count:
            part[:] = message.payload[DMA_ACCESS.size :]
            return DMA_ACCESS.pack(address, count)
        return None

    # The end.

    def close(self) -> None:
        """Disconnect."""
        self.socket.close()
        if self._twin is not None:
            self._twin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _receive_exactly(connection: socket.socket, count: int) -> tuple[bytes, list[int]]:
    data, fds = bytearray(), array("i")
    space = socket.CMSG_SPACE(MAX_MSG_FDS * fds.itemsize)
    while len(data) < count:
        try:
            part, ancillary, _, _ = connection.recvmsg(count - len(data), space, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            close_all(fds)
            raise VfioUserError("the server did not answer in time") from None
        except OSError as error:
            close_all(fds)
            raise VfioUserError(f"the connection failed: {error}") from None
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        if not part:
            close_all(fds)
            raise VfioUserError("the server closed the connection")
        data += part
    return bytes(data), fds.tolist()
