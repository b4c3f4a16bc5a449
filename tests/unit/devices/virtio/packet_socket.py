"""A tap that is a socket: whole packets, header and frame, and a peer that can be looked at."""

from __future__ import annotations

import contextlib
import os
import socket

from iolane.backends.net.base import NO_OFFLOAD, PLAIN_HEADER, NetBackend, Notify, Offload
from iolane.backends.net.tap import ALL_OFFLOADS, Tap
from iolane.memory.ring import NetPort
from iolane.uapi.virtio_net import HEADER

SO_SNDBUFFORCE = 32
BUFFER = 1 << 20


class SocketTap(Tap):
    """As `Tap` from its descriptors on, without what an interface has beside them. To tests it is what
    `MemoryNet` is, and compiled code can use it.

    Args:
        tells: whether the device is told of packets that come; else it looks when it is asked to.

    Attributes:
        peers: by queue, the other ends: what is sent arrives there, and what they send is received.
        wanted, used: offloads and queues as last set.
    """

    def __init__(self, *, queues: int = 1, offloads: Offload = ALL_OFFLOADS, tells: bool = True) -> None:
        NetBackend.__init__(self, "socket", queues=queues, offloads=offloads)
        self.peers: list[socket.socket] = []
        self._fds = []
        for _ in range(queues):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for end in (ours, theirs):
                end.setblocking(False)
                with contextlib.suppress(PermissionError):
                    end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
            self._fds.append(ours.detach())
            self.peers.append(theirs)
        self.ports = [NetPort(0, fd=fd) for fd in self._fds]
        self._buffer = memoryview(bytearray(1 << 17))
        self._wanted = {}
        self._poller = None
        self._tells = tells
        self._lost = False
        self._attached = queues
        self.wanted, self.used = NO_OFFLOAD, queues
        self._sent: list[tuple[int, bytes, bytes]] = []

    def start(self, notify: Notify) -> None:
        if self._tells:
            super().start(notify)

    def set_offloads(self, offloads: Offload) -> None:
        self.wanted = offloads

    def use_queues(self, count: int) -> None:
        self.used = count

    def feed(self, *frames: bytes, header: bytes = PLAIN_HEADER, queue: int = 0) -> None:
        """Packets come in."""
        for frame in frames:
            self.peers[queue].send(header + frame)

    @property
    def sent(self) -> list[tuple[int, bytes, bytes]]:
        """(queue, header, frame) of what was sent since `take` was called."""
        for queue, peer in enumerate(self.peers):
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet = peer.recv(1 << 17)
                    self._sent.append((queue, packet[: HEADER.size], packet[HEADER.size :]))
        return self._sent

    def take(self) -> list[bytes]:
        """Frames that were sent since the last call."""
        frames = [frame for _, _, frame in self.sent]
        self._sent.clear()
        return frames

    def fill(self, queue: int = 0) -> int:
        """Let the network take no more; how many packets lie before the first that is sent after this."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self._fds[queue], bytes(1024))
                count += 1
        return count

    def close(self) -> None:
        super().close()
        for peer in self.peers:
            peer.close()
