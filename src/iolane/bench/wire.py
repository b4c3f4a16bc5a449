"""A network for guests that move: one host that asks for echoes, and a switch that follows the guest.

Guests are at unix sockets on which each frame is preceded by its length (4 bytes, big-endian), as QEMU's
`-netdev stream` and iolane's `net,peer=` speak it, so that one network serves both.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

HOST_MAC, GUEST_MAC = bytes.fromhex("02 00 00 00 00 01"), bytes.fromhex("02 00 00 00 00 02")
HOST, GUEST = "10.74.1.1", "10.74.1.2"
IPV4, ARP = 0x0800, 0x0806
ICMP, ECHO, ECHO_REPLY = 1, 8, 0
IDENTIFIER = 0x10
INTERVAL = 0.01
"""Seconds from one question to the next."""
LENGTH = struct.Struct(">I")
LONGEST_FRAME = 65_550


class Wire:
    """The network while it is entered; its host asks the guest every `INTERVAL`.

    Args:
        path: of the socket that guests connect to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: list[float] = []
        """When an answer came, in seconds of `time.monotonic`."""
        self._selector = selectors.DefaultSelector()
        self._ports: dict[socket.socket, bytearray] = {}
        self._current: socket.socket | None = None
        """Where a frame of the guest came from last."""
        self._sequence = 0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._ended = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="wire")

    def __enter__(self) -> Self:
        self._listener.bind(os.fspath(self.path))
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._ended, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.eventfd_write(self._ended, 1)
        self._thread.join()
        self._selector.close()
        for each in (self._listener, *self._ports):
            each.close()
        os.close(self._ended)

    def silence(self, begin: float, end: float) -> float:
        """The longest time without an answer between two moments."""
        moments = [begin, *(moment for moment in list(self.answers) if begin < moment < end), end]
        return max(later - earlier for earlier, later in pairwise(moments))

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                if key.fileobj is self._listener:
                    port, _ = self._listener.accept()
                    port.setblocking(False)
                    self._ports[port] = bytearray()
                    self._selector.register(port, selectors.EVENT_READ)
                elif isinstance(key.fileobj, socket.socket):
                    self._take(key.fileobj)
                else:
                    return
            if time.monotonic() >= due:
                due = max(due + INTERVAL, time.monotonic())
                self._sequence = (self._sequence + 1) & 0xFFFF
                self._send(question(self._sequence))

    def _take(self, port: socket.socket) -> None:
        data = b""
        with contextlib.suppress(ConnectionError):
            data = port.recv(1 << 16)
        if not data:
            self._selector.unregister(port)
            del self._ports[port]
            self._current = None if self._current is port else self._current
            port.close()
            return
        kept = self._ports[port]
        kept += data
        while len(kept) >= LENGTH.size:
            [length] = LENGTH.unpack_from(kept)
            if len(kept) < LENGTH.size + length:
                break
            self._frame(port, bytes(kept[LENGTH.size : LENGTH.size + length]))
            del kept[: LENGTH.size + length]

    def _frame(self, port: socket.socket, frame: bytes) -> None:
        """A switch learns from the address that a frame comes from (IEEE 802.1D, 7.8)."""
        if frame[6:12] != GUEST_MAC:
            return
        self._current = port
        if is_answer(frame):
            self.answers.append(time.monotonic())
        elif (reply := answer_to_arp(frame)) is not None:
            self._send(reply)

    def _send(self, frame: bytes) -> None:
        """To where the guest is. What its socket has no room for is lost, as on a network."""
        if self._current is not None:
            with contextlib.suppress(OSError):
                self._current.send(LENGTH.pack(len(frame)) + frame)


def checksum(data: bytes) -> int:
    """RFC 1071.

    >>> hex(checksum(bytes.fromhex("0001f203f4f5f6f7")))
    '0x220d'
    """
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def question(sequence: int) -> bytes:
    """An ICMP echo request of the host (RFC 792)."""
    echo = struct.pack(">BBHHH", ECHO, 0, 0, IDENTIFIER, sequence) + bytes(32)
    echo = echo[:2] + struct.pack(">H", checksum(echo)) + echo[4:]
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(echo), sequence, 0, 64, ICMP, 0)
    header += socket.inet_aton(HOST) + socket.inet_aton(GUEST)
    header = header[:10] + struct.pack(">H", checksum(header)) + header[12:]
    return GUEST_MAC + HOST_MAC + struct.pack(">H", IPV4) + header + echo


def is_answer(frame: bytes) -> bool:
    """Whether it is an echo reply to one of our questions."""
    if len(frame) < 42 or frame[12:14] != IPV4.to_bytes(2, "big") or frame[23] != ICMP:
        return False
    return frame[34] == ECHO_REPLY and frame[38:40] == IDENTIFIER.to_bytes(2, "big")


def answer_to_arp(frame: bytes) -> bytes | None:
    """Where the host is, for a guest that asks (RFC 826)."""
    asked = struct.pack(">HHBBH", 1, IPV4, 6, 4, 1)
    if len(frame) < 42 or frame[12:14] != ARP.to_bytes(2, "big") or frame[14:22] != asked:
        return None
    if frame[38:42] != socket.inet_aton(HOST):
        return None
    body = asked[:7] + b"\x02" + HOST_MAC + frame[38:42] + frame[22:32]
    return frame[6:12] + HOST_MAC + frame[12:14] + body
