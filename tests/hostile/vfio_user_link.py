"""A hostile client's connection: sends any bytes, and checks that what comes back is a protocol."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

HEADER = struct.Struct("<HHIII")
VERSION = struct.pack("<HH", 0, 0) + b'{"capabilities":{"max_msg_fds":16}}\0'
MESSAGE_ID = 0x7A7A
REPLY, NO_REPLY, ERROR = 0x1, 0x10, 0x20
EINVAL = 22


class Found(AssertionError):
    """The server did what no server may do."""


class Answer:
    """A reply: its errno where it is an error (0 may be one), else its payload."""

    def __init__(self, command: int, error: int | None, payload: bytes) -> None:
        self.command = command
        self.error = error
        self.payload = payload


def message(command: int, payload: bytes = b"", *, flags: int = 0, size: int | None = None) -> bytes:
    length = HEADER.size + len(payload) if size is None else size
    return HEADER.pack(MESSAGE_ID, command, length, flags, 0) + payload


class Link:
    """One connection. `timeout` is how long a living server may take."""

    def __init__(self, path: Path, *, timeout: float, negotiate: bool = True) -> None:
        self.asked: list[bytes] = []
        """Commands of the server that nobody has answered, where `answering` is off."""
        self.answering = True
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(str(path))
        except OSError as error:
            raise Found(f"no server any more: {error}") from None
        if negotiate:
            self.expect(message(1, VERSION))

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        try:
            if fds:
                socket.send_fds(self.socket, [data], list(fds))
            else:
                self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # thrown out already; the answer will say so
        except TimeoutError:
            raise Found("the server reads no more") from None

    def answer(self) -> Answer | None:
        """The next reply, None where the server has closed. What it asks meanwhile is refused."""
        while True:
            head = self._exactly(HEADER.size)
            if head is None:
                return None
            message_id, command, size, flags, error = HEADER.unpack(head)
            if not HEADER.size <= size <= 2 << 20:
                raise Found(f"a message of {size} bytes")
            payload = self._exactly(size - HEADER.size)
            if payload is None:
                raise Found("the server closed inside a message")
            if not flags & REPLY:
                if command not in (11, 12):
                    raise Found(f"the server asks command {command}")
                self._refuse(head)
                continue
            if message_id != MESSAGE_ID:
                raise Found(f"a reply to message {message_id}")
            if flags & ~(REPLY | ERROR) or (flags & ERROR and payload):
                raise Found(f"a reply with flags {flags:#x} and {len(payload)} bytes")
            return Answer(command, error if flags & ERROR else None, payload)

    def _refuse(self, head: bytes) -> None:
        if not self.answering:
            self.asked.append(head)
            return
        message_id, command, *_ = HEADER.unpack(head)
        self.send(HEADER.pack(message_id, command, HEADER.size, REPLY | ERROR, EINVAL))

    def _exactly(self, count: int) -> bytes | None:
        data = bytearray()
        while len(data) < count:
            try:
                part = self.socket.recv(count - len(data))
            except ConnectionResetError:
                part = b""
            except TimeoutError:
                raise Found("the server hangs") from None
            if not part:
                if data:
                    raise Found("the server closed inside a message")
                return None
            data += part
        return bytes(data)

    def ask(self, data: bytes, fds: Sequence[int] = ()) -> Answer | None:
        """Send a message and take its answer."""
        self.send(data, fds)
        return self.answer()

    def expect(self, data: bytes, fds: Sequence[int] = ()) -> bytes:
        """Send what is right and must succeed."""
        answer = self.ask(data, fds)
        if answer is None or answer.error is not None:
            what = "closed" if answer is None else os.strerror(answer.error or 0)
            raise Found(f"a good message (command {data[2]}) got: {what}")
        return answer.payload

    def drain(self) -> int:
        """No more is sent; read to the end. How many replies came; the server must close."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            return 0
        count = 0
        while self.answer() is not None:
            count += 1
        return count

    def close(self) -> None:
        self.socket.close()
