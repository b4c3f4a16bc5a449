"""Telling the network where a guest is now, after a migration (virtio 1.3, 5.1.6.5.4)."""

from __future__ import annotations

from collections.abc import Callable

from iolane.devices.virtio.net.filter import BROADCAST
from iolane.model.clock import Clock, Timer

ROUNDS = 5
FIRST_NS = 50_000_000
STEP_NS = 100_000_000
"""A switch may need a moment to notice: as often, and as far apart, as QEMU does it."""
SHORTEST_FRAME = 60


class Announcer:
    """Announces several times, further and further apart.

    Args:
        announce: does it once.
    """

    def __init__(self, announce: Callable[[], None]) -> None:
        self._announce = announce
        self._timer: Timer | None = None
        self._left = 0

    def start(self, clock: Clock) -> None:
        """Begin anew."""
        self.stop()
        self._left = ROUNDS
        self._timer = clock.call_after(FIRST_NS, lambda: self._round(clock))

    def stop(self) -> None:
        """Announce no more."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _round(self, clock: Clock) -> None:
        self._left -= 1
        self._timer = None
        if self._left:
            delay = FIRST_NS + (ROUNDS - 1 - self._left) * STEP_NS
            self._timer = clock.call_after(delay, lambda: self._round(clock))
        self._announce()


def reverse_arp(mac: bytes) -> bytes:
    """A request of RFC 903 from `mac` for its own address: every switch on the way learns where it is."""
    request = b"\x00\x01\x08\x00\x06\x04\x00\x03" + mac + bytes(4) + mac + bytes(4)
    return (BROADCAST + mac + b"\x80\x35" + request).ljust(SHORTEST_FRAME, b"\0")
