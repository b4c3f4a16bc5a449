"""A front end that sends anything, and looks at what comes back."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from iolane.carriers.vhost_user.protocol import HEADER, U64, VRING_ADDRESS, VRING_STATE, HeaderFlag, Request

GUARD = 1 << 16
RAM = 1 << 18
GUEST = 0x4000_0000
USER = 0x7F12_3456_0000
PATTERN = bytes(range(256)) * (GUARD // 256)
RING = 16
TIMEOUT = 10
"""Seconds without an answer that count as a server that hangs."""


class Found(AssertionError):
    """Something is wrong with the server."""


class Ram:
    """Guest memory between two guard areas."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ram", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, RAM + 2 * GUARD)
        self.restore()

    def restore(self) -> None:
        """The guards as they were; the file as long as it was."""
        os.ftruncate(self.fd, RAM + 2 * GUARD)
        os.pwrite(self.fd, PATTERN, 0)
        os.pwrite(self.fd, PATTERN, GUARD + RAM)

    def check(self) -> None:
        """Nobody wrote outside."""
        for place in (0, GUARD + RAM):
            if os.pread(self.fd, GUARD, place) != PATTERN:
                raise Found("a guard area was written")

    def fill(self, dice: random.Random) -> None:
        """Rings of random content, some of it likely to be taken for chains."""
        words = [dice.choice([0, 0, 1, 2, 3, 16, GUEST & 0xFFFF, dice.randrange(65536)]) for _ in range(2048)]
        os.pwrite(self.fd, b"".join(word.to_bytes(2, "little") for word in words), GUARD)

    def close(self) -> None:
        os.close(self.fd)


class Link:
    """One connection. What is sent asks for an acknowledgement, so that every message has an answer."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(str(path))
        self.ended = False
        self.sent = 0

    def send(
        self,
        request: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        flags: int = 1 | HeaderFlag.NEED_REPLY,
        size: int | None = None,
    ) -> None:
        """Send a message, whatever it is."""
        message = HEADER.pack(request, flags, len(payload) if size is None else size) + payload
        self.sent += 1
        try:
            if fds:
                socket.send_fds(self.socket, [message], list(fds))
            else:
                self.socket.sendall(message)
        except OSError:
            self.ended = True

    def answer(self) -> bytes | None:
        """The next reply's payload; None at the end of the connection."""
        try:
            header = self._exactly(HEADER.size)
            if header is None:
                return None
            _, flags, size = HEADER.unpack(header)
            if flags != 1 | HeaderFlag.REPLY or size > 4096:
                raise Found(f"a reply with flags {flags:#x} and {size} bytes")
            payload = self._exactly(size)
        except TimeoutError:
            raise Found("the server hangs") from None
        if payload is None:
            raise Found("the connection ended in a reply")
        return payload

    def _exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            try:
                part, ancillary, _, _ = self.socket.recvmsg(count - len(data), 256)
            except ConnectionError:
                part, ancillary = b"", []
            for _, _, content in ancillary:
                for at in range(0, len(content) - 3, 4):
                    os.close(int.from_bytes(content[at : at + 4], "little"))
            if not part:
                self.ended = True
                return None if not data else b""
            data += part
        return data

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int | None:
        """What a request is answered by, as a number; None: the connection ended, or it is no number."""
        if self.ended:
            return None
        self.send(request, payload, fds)
        answer = self.answer()
        return None if answer is None or len(answer) != 8 else int(U64.unpack(answer)[0])

    def u64(self, request: int, value: int, fds: Sequence[int] = ()) -> int | None:
        """The same for a number."""
        return self.ask(request, U64.pack(value & (1 << 64) - 1), fds)

    def state(self, request: int, index: int, num: int) -> int | None:
        """The same for a ring and a number."""
        return self.ask(request, VRING_STATE.pack(index & 0xFFFF_FFFF, num & 0xFFFF_FFFF))

    def negotiate(self, features: int) -> None:
        """Take everything that is offered."""
        offered = self.ask(Request.GET_PROTOCOL_FEATURES)
        assert offered is not None
        self.u64(Request.SET_PROTOCOL_FEATURES, offered & ~(1 << 16))
        self.u64(Request.SET_FEATURES, features)
        self.ask(Request.SET_OWNER)

    def address(self, index: int, offset: int = 0, *, flags: int = 0, log: int = 0) -> int | None:
        """SET_VRING_ADDR of a ring at an offset of the memory."""
        at = USER + offset
        payload = VRING_ADDRESS.pack(index, flags, at, at + 0x800, at + 0x400, log)
        return self.ask(Request.SET_VRING_ADDR, payload)

    def start(self, index: int, kick: int, call: int, offset: int = 0) -> None:
        """Start a ring whose memory is there."""
        self.state(Request.SET_VRING_NUM, index, RING)
        self.state(Request.SET_VRING_BASE, index, 0)
        self.address(index, offset)
        self.u64(Request.SET_VRING_CALL, index, [call])
        self.u64(Request.SET_VRING_KICK, index, [kick])
        self.state(Request.SET_VRING_ENABLE, index, 1)

    def close(self) -> None:
        with suppress(OSError):
            self.socket.close()
