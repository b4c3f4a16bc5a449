"""Streams without a host resource: nobody, and a peer in the same process."""

from __future__ import annotations

from iolane.backends.stream.base import StreamBackend


class NullStream(StreamBackend):
    """Nobody: reads nothing, drops everything."""

    def __init__(self) -> None:
        super().__init__("null")

    @property
    def connected(self) -> bool:
        """Never."""
        return False

    def read(self, limit: int) -> bytes:
        """Nothing, ever."""
        return b""

    def write(self, data: bytes) -> int:
        """All of it, into the void."""
        self.bytes_dropped += len(data)
        return len(data)

    def close(self) -> None:
        """Nothing to give back."""


class MemoryStream(StreamBackend):
    """A peer in the same process, for tests and for in-memory carriers.

    Args:
        capacity: bytes of output that are taken before `take()` makes room again.
    """

    def __init__(self, capacity: int = 1 << 20) -> None:
        super().__init__("memory")
        self.capacity = capacity
        self.breaks: list[bool] = []
        """What `set_break` was called with."""
        self._input = bytearray()
        self._output = bytearray()
        self._connected = True
        self._break = False

    def feed(self, data: bytes) -> None:
        """The peer sends."""
        self._input += data
        self._notify()

    def feed_break(self) -> None:
        """The peer sends a break."""
        self._break = True
        self._notify()

    def take(self) -> bytes:
        """What the peer has received since the last call."""
        taken = bytes(self._output)
        self._output.clear()
        if taken:
            self._notify()
        return taken

    def connect(self, connected: bool = True) -> None:
        """The peer comes or goes."""
        self.connections += connected and not self._connected
        self._connected = connected
        self._notify()

    @property
    def connected(self) -> bool:
        """Whether the peer is there: it is from the start."""
        return self._connected

    def read(self, limit: int) -> bytes:
        """As in the base class."""
        data = bytes(self._input[:limit])
        del self._input[:limit]
        self.bytes_read += len(data)
        return data

    def write(self, data: bytes) -> int:
        """As in the base class."""
        if not self._connected:
            self.bytes_dropped += len(data)
            return len(data)
        taken = data[: self.capacity - len(self._output)]
        self._output += taken
        self.bytes_written += len(taken)
        return len(taken)

    def set_break(self, on: bool) -> None:
        """Remember it for the test."""
        self.breaks.append(on)

    def take_break(self) -> bool:
        """As in the base class."""
        taken, self._break = self._break, False
        return taken

    def close(self) -> None:
        """Nothing to give back."""
        self.stop()
