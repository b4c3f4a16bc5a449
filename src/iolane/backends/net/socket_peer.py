"""A peer at a unix socket: each frame is preceded by its length, 4 bytes, big-endian.

It is what QEMU's `-netdev stream` and passt speak, so the other end may be another guest. Where compiled
code has the rings, it reads and writes the frames, too; who the peer is stays Python's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from iolane.backends.net.base import NetBackend, Notify
from iolane.backends.net.framing import Framing, PlainFraming, PortFraming, Sent, Trouble
from iolane.backends.stream import DescriptorPair, SocketStream
from iolane.backends.stream.descriptor import DescriptorStream
from iolane.errors import IolaneError
from iolane.memory.ring import NetPort

FORMS = "unix:PATH, listen:PATH or fd:N"


class SocketPeer(NetBackend):
    """One peer at a time; without one the link is down. A peer that says nonsense is thrown out.

    Args:
        stream: the socket, which is closed with this.
    """

    def __init__(self, stream: DescriptorStream, name: str = "") -> None:
        super().__init__(name or f"peer={stream.name}")
        self._stream = stream
        self._connection = stream.connections
        self._framing: Framing = PlainFraming(stream)

    def open_port(self, pair: int) -> NetPort | None:
        """As in the base class. Frames pass by the port from now on, for Python, too."""
        if isinstance(self._framing, PlainFraming) and self._may_be_lent():
            framing = PortFraming(self._stream, self._framing)
            self._framing, self.ports = framing, [framing.port]
        return super().open_port(pair)

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
        self._part_if_troubled()
        self._stream.service()
        if self._connection != self._stream.connections:
            self._connection = self.connections = self._stream.connections
            self._framing.begin()
        self._framing.flush()

    def receive(self, queue: int) -> bytes | None:
        """As in the base class."""
        packet = self._framing.receive()
        if packet is None:
            self._part_if_troubled()
        elif not self.ports:
            self.packets_read += 1
        return packet

    def send(self, queue: int, header: bytes, frame: Sequence[memoryview | bytes]) -> bool:
        """As in the base class."""
        sent = self._framing.send(header, frame) if self._stream.connected else Sent.FAILED
        if sent is Sent.FAILED:
            self.packets_dropped += 1
            self._part_if_troubled()
        elif sent is Sent.DONE and not self.ports:
            self.packets_written += 1
        return sent is not Sent.FULL

    def _part_if_troubled(self) -> None:
        """From a peer that has gone, or says nonsense."""
        trouble = self._framing.trouble
        if trouble is not Trouble.NONE:
            self.errors += trouble is Trouble.NONSENSE
            self._framing.cut()
            self._stream.hang_up()

    def close(self) -> None:
        """As in the base class."""
        self._notify = lambda queue: None
        self._framing.cut()
        self._stream.close()


def open_peer(text: str) -> SocketPeer:
    """The peer that a user names: `unix:PATH` connects, `listen:PATH` waits, `fd:N` is a connected socket."""
    kind, _, rest = text.partition(":")
    if kind in ("unix", "listen") and rest:
        return SocketPeer(SocketStream(Path(rest).expanduser(), listen=kind == "listen"))
    if kind == "fd" and rest.isdecimal():
        return SocketPeer(DescriptorPair(int(rest)))
    raise IolaneError(f"'{text}' names no network peer", remedy=FORMS)
