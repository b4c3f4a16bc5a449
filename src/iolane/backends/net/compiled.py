"""A network in the memory of compiled code: what is measured beside it is the data plane alone."""

from __future__ import annotations

from collections.abc import Sequence

from iolane.backends.net.base import NetBackend, Notify
from iolane.backends.poller import READABLE, Poller
from iolane.errors import IolaneError
from iolane.memory.ring import NetPort

KINDS = {"sink": 1, "source": 2, "echo": 3}
"""Kinds of NetPort."""


class CompiledNet(NetBackend):
    """Always there, and never has much to do.

    Args:
        kind: `sink` takes every packet, `source` always has one of zeroes, `echo` gives each back.
        length: bytes of a source's frames, and of an echo's at most.
    """

    def __init__(self, kind: str, length: int) -> None:
        if kind not in KINDS:
            raise IolaneError(f"there is no network {kind!r}", remedy=", ".join(KINDS))
        super().__init__(kind)
        self._port = NetPort(KINDS[kind], length=length)
        self.ports = [self._port]
        self._poller: Poller | None = None

    @property
    def connected(self) -> bool:
        """It is."""
        return True

    def start(self, notify: Notify) -> None:
        """As in the base class."""
        self.stop()
        super().start(notify)
        self._poller = Poller(f"iolane-{self.name}")

    def stop(self) -> None:
        """As in the base class."""
        super().stop()
        poller, self._poller = self._poller, None
        if poller is not None:
            poller.close()

    def receive(self, queue: int) -> bytes | None:
        """As in the base class."""
        packet = self._port.receive()
        if packet is None:
            self._tell_by(self._port.arrival)
        return packet

    def send(self, queue: int, header: bytes, frame: Sequence[memoryview | bytes]) -> bool:
        """As in the base class."""
        outcome = self._port.send(b"".join((header, *frame)))
        if outcome == 0:
            self._tell_by(self._port.room)
        elif outcome < 0:
            self.packets_dropped += 1
        return outcome != 0

    def _tell_by(self, fd: int) -> None:
        if self._poller is not None and fd >= 0:
            self._poller.arm(fd, READABLE, lambda: self._notify(0))

    def close(self) -> None:
        """As in the base class."""
        self.stop()
