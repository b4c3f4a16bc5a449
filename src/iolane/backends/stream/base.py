"""Byte-stream back ends: what is at the other end of a serial line.

A device pulls: `read(limit)` when it has room, `write(data)` when it has bytes; neither ever blocks.
Whatever could not be done at once is announced by one call of the `notify` given to `start`, upon which the
device, under its lock, calls `service()` and tries again. So all of a back end runs under the device's lock,
nothing is buffered without bound, and a peer that does not read stops the guest instead of losing its output.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

Notify = Callable[[], None]


def nothing() -> None:
    """The `notify` of a stream that is not started."""


class StreamBackend(ABC):
    """One end of a byte stream. Not thread-safe: the device that owns it calls it under its lock."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bytes_read = 0
        self.bytes_written = 0
        self.bytes_dropped = 0
        """Output that had nowhere to go: no peer, or a peer that left before it had read."""
        self.connections = 0
        self.errors = 0
        self._notify: Notify = nothing

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether somebody is at the other end."""

    @abstractmethod
    def read(self, limit: int) -> bytes:
        """Up to `limit` bytes; fewer mean that no more are there now and that `notify` tells of the next.

        A limit of 0 only has `notify` tell when the peer leaves. What it sent before can be read later.
        """

    @abstractmethod
    def write(self, data: bytes) -> int:
        """How many bytes were taken; fewer than given mean that `notify` tells when to try again.

        Without a peer all bytes are taken and counted as dropped, as a line that is plugged in nowhere does.
        """

    def start(self, notify: Notify) -> None:
        """Begin to announce changes. `notify` may come from another thread, without the device's lock."""
        self._notify = notify

    def service(self) -> None:
        """Do what readiness asks for: accept, connect again, write what was held back."""
        return None

    def stop(self) -> None:
        """Announce nothing more; `start` may follow."""
        self._notify = nothing

    def set_break(self, on: bool) -> None:
        """The line is held in the break condition, or no longer; streams without such a thing ignore it."""
        return None

    def take_break(self) -> bool:
        """Whether the peer sent a break since the last call."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Give back what the host lent. May be called twice."""

    def statistics(self) -> dict[str, int | float | str]:
        """Counters, by the names `iolane devices` shows."""
        return {
            "stream": self.name,
            "stream_connected": int(self.connected),
            "stream_connections": self.connections,
            "stream_bytes_read": self.bytes_read,
            "stream_bytes_written": self.bytes_written,
            "stream_bytes_dropped": self.bytes_dropped,
            "stream_errors": self.errors,
        }
