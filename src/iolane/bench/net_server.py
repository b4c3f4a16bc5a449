"""The iolane side of `iolane bench net`: a network device by vhost-user, and a network that does little.

Run as `python -m iolane.bench.net_server sink|source|echo BYTES SOCKET`; says `ready`, serves until its
standard input ends.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence

from iolane.backends.net import NetBackend
from iolane.backends.net.base import PLAIN_HEADER
from iolane.carriers.vhost_user import VhostUserServer
from iolane.devices.virtio.net import BareNet
from iolane.model.workers import Workers

CAPACITY = 1024


class _There(NetBackend):
    """A network that is always there."""

    @property
    def connected(self) -> bool:
        return True

    def receive(self, queue: int) -> bytes | None:
        return None

    def send(self, queue: int, header: bytes, frame: Sequence[memoryview | bytes]) -> bool:
        return True

    def close(self) -> None:
        self.stop()


class Sink(_There):
    """Takes every packet."""


class Source(_There):
    """Always has a packet."""

    def __init__(self, name: str, length: int) -> None:
        super().__init__(name)
        self._packet = PLAIN_HEADER + bytes(length)

    def receive(self, queue: int) -> bytes | None:
        return self._packet


class Echo(_There):
    """Gives every packet back. As with a tap, another thread tells of what is there to be received."""

    def __init__(self, name: str, workers: Workers) -> None:
        super().__init__(name)
        self._workers = workers
        self._packets: deque[bytes] = deque()
        self._full = False

    def send(self, queue: int, header: bytes, frame: Sequence[memoryview | bytes]) -> bool:
        if len(self._packets) >= CAPACITY:
            self._full = True
            return False
        self._packets.append(b"".join((header, *frame)))
        if len(self._packets) == 1:
            self._tell()
        return True

    def receive(self, queue: int) -> bytes | None:
        if not self._packets:
            return None
        if self._full:
            self._full = False
            self._tell()
        return self._packets.popleft()

    def _tell(self) -> None:
        self._workers.submit(lambda: self._notify(0))


def make_network(kind: str, length: int, workers: Workers) -> NetBackend:
    """By name."""
    if kind == "echo":
        return Echo(kind, workers)
    return Source(kind, length) if kind == "source" else Sink(kind)


def main(kind: str, length: str, socket: str) -> None:
    """Serve until whoever started this closes our standard input."""
    with Workers(2) as workers:
        net = BareNet(backend=make_network(kind, int(length), workers), queue_size=256)
        with VhostUserServer(net, socket, workers=workers):
            print("ready", flush=True)
            sys.stdin.read()
        net.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
