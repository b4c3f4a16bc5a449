"""A peer at a unix socket: each frame is preceded by its length, 4 bytes, big-endian.

It is what QEMU's `-netdev stream` and passt speak, so the other end may be another guest. Where compiled
code has the rings, it reads and writes the frames, too, by a `FrameStream`; who the peer is stays Python's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from iolane.backends.net.base import LARGEST_FRAME, PLAIN_HEADER, NetBackend, Notify
from iolane.backends.poller import READABLE, WRITABLE
from iolane.backends.stream import DescriptorPair, SocketStream
from iolane.backends.stream.descriptor import DescriptorStream
from iolane.errors import IolaneError
from iolane.memory.ring import NetPort

FORMS = "unix:PATH, listen:PATH or fd:N"
CHUNK = 1 << 18
LENGTH = 4
_STREAM = 4
"""A kind of NetPort."""
_NONSENSE = 2
"""Of `FrameStream.trouble`."""


class SocketPeer(NetBackend):
    """One peer at a time; without one the link is down. A peer that says nonsense is thrown out.

    Args:
        stream: the socket, which is closed with this.
    """

    def __init__(self, stream: DescriptorStream, name: str = "") -> None:
        super().__init__(name or f"peer={stream.name}")
        self._stream = stream
        stream.chunk = CHUNK
        self._connection = stream.connections
        self._input = bytearray()
        self._rest = b""
        """What the socket did not take of the frame before."""
        self._port: NetPort | None = None

    def open_port(self, pair: int) -> NetPort | None:
        """As in the base class. Frames pass by the port from now on, for Python, too."""
        if self._port is None and self._may_be_lent():
            self._port = NetPort(_STREAM)
            self.ports = [self._port]
            unread = bytes(self._input) + self._stream.lend()
            if self._stream.connected:
                self._port.stream.connect(self._stream.descriptor, unread, self._rest)
            self._input.clear()
            self._rest = b""
        return self._port

    def _may_be_lent(self) -> bool:
        descriptor = self._stream.descriptor
        return descriptor < 0 or stat.S_ISSOCK(os.fstat(descriptor).st_mode)

    @property
    def connected(self) -> bool:
        """Whether a peer is there."""
        return self._stream.connected

    def start(self, notify: Notify) -> None:
        """As in the base class."""
        super().start(notify)
        self._stream.start(lambda: self._notify(0))

    def stop(self) -> None:
        """As in the base class."""
        super().stop()
        self._stream.stop()

    def service(self) -> None:
        """As in the base class."""
        if self._port is not None and self._port.stream.trouble:
            self._part(self._port)
        self._stream.service()
        self._follow_peer()
        self._flush()

    def _follow_peer(self) -> None:
        """What was left of one peer's frames means nothing to the next."""
        if self._connection != self._stream.connections:
            self._connection = self.connections = self._stream.connections
            self._input.clear()
            self._stream.forget_input()
            self._rest = b""
            if self._port is not None and self._stream.connected:
                self._port.stream.connect(self._stream.descriptor)

    def receive(self, queue: int) -> bytes | None:
        """As in the base class."""
        if self._port is not None:
            return self._receive_by(self._port)
        while True:
            if len(self._input) >= LENGTH:
                length = int.from_bytes(self._input[:LENGTH], "big")
                if length > LARGEST_FRAME:
                    self._throw_out()
                    return None
                if len(self._input) >= LENGTH + length:
                    frame = bytes(self._input[LENGTH : LENGTH + length])
                    del self._input[: LENGTH + length]
                    self.packets_read += 1
                    return PLAIN_HEADER + frame
            data = self._stream.read(CHUNK)
            if not data:
                return None
            self._input += data

    def _receive_by(self, port: NetPort) -> bytes | None:
        packet = port.receive()
        if packet is None:
            if port.stream.trouble:
                self._part(port)
            self._stream.tell_when_ready(READABLE)
        return packet

    def _part(self, port: NetPort) -> None:
        """From a peer that has gone, or says nonsense."""
        self.errors += port.stream.trouble == _NONSENSE
        port.stream.cut()
        self._stream.hang_up()

    def _throw_out(self) -> None:
        self.errors += 1
        self._input.clear()
        self._rest = b""
        self._stream.hang_up()

    def send(self, queue: int, header: bytes, frame: Sequence[memoryview | bytes]) -> bool:
        """As in the base class."""
        if not self._stream.connected:
            self.packets_dropped += 1
            self._rest = b""
            return True
        if self._port is not None:
            return self._send_by(self._port, b"".join((header, *frame)))
        if not self._flush():
            return False
        length = sum(len(piece) for piece in frame)
        data = b"".join((length.to_bytes(LENGTH, "big"), *frame))
        self._rest = data[self._stream.write(data) :]
        self.packets_written += 1
        return True

    def _send_by(self, port: NetPort, packet: bytes) -> bool:
        outcome = port.send(packet)
        if outcome < 0:
            self.packets_dropped += 1
            if port.stream.trouble:
                self._part(port)
        elif outcome == 0 or port.stream.pending:
            self._stream.tell_when_ready(WRITABLE)
        return outcome != 0

    def _flush(self) -> bool:
        """Whether nothing is held back any more."""
        if self._port is not None:
            done = self._port.stream.push()
            if not done:
                self._stream.tell_when_ready(WRITABLE)
            return done
        if self._rest:
            self._rest = self._rest[self._stream.write(self._rest) :]
        return not self._rest

    def close(self) -> None:
        """As in the base class."""
        self._notify = lambda queue: None
        if self._port is not None:
            self._port.stream.cut()
        self._stream.close()


def open_peer(text: str) -> SocketPeer:
    """The peer that a user names: `unix:PATH` connects, `listen:PATH` waits, `fd:N` is a connected socket."""
    kind, _, rest = text.partition(":")
    if kind in ("unix", "listen") and rest:
        return SocketPeer(SocketStream(Path(rest).expanduser(), listen=kind == "listen"))
    if kind == "fd" and rest.isdecimal():
        return SocketPeer(DescriptorPair(int(rest)))
    raise IolaneError(f"'{text}' names no network peer", remedy=FORMS)
