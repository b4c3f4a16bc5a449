"""A network in the same process, for tests and for in-memory carriers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from iolane.backends.net.base import NO_OFFLOAD, PLAIN_HEADER, NetBackend, Offload


class MemoryNet(NetBackend):
    """A peer in the same process.

    Args:
        capacity: packets that are taken before `take` makes room again.

    Attributes:
        sent: (queue, header, frame) of what was sent.
        wanted: offloads as last set.
        used: queues as last set.
    """

    def __init__(self, *, queues: int = 1, offloads: Offload = NO_OFFLOAD, capacity: int = 1 << 16) -> None:
        super().__init__("memory", queues=queues, offloads=offloads)
        self.capacity = capacity
        self.sent: list[tuple[int, bytes, bytes]] = []
        self.wanted = NO_OFFLOAD
        self.used = queues
        self.closed = False
        self._arriving: list[deque[bytes]] = [deque() for _ in range(queues)]
        self._connected = True

    def feed(self, *frames: bytes, header: bytes = PLAIN_HEADER, queue: int = 0) -> None:
        """Packets come in."""
        self._arriving[queue].extend(header + frame for frame in frames)
        self._notify(queue)

    def take(self) -> list[bytes]:
        """Frames that were sent since the last call."""
        frames = [frame for _, _, frame in self.sent]
        self.sent.clear()
        for queue in range(self.queues):
            self._notify(queue)
        return frames

    def waiting(self, queue: int = 0) -> int:
        """Packets that were not received yet."""
        return len(self._arriving[queue])

    def connect(self, connected: bool = True) -> None:
        """The other end comes or goes."""
        self._connected = connected
        self._notify(0)

    @property
    def connected(self) -> bool:
        """Whether the other end is there: it is from the start."""
        return self._connected

    def receive(self, queue: int) -> bytes | None:
        """As in the base class."""
        if not self._arriving[queue]:
            return None
        self.packets_read += 1
        return self._arriving[queue].popleft()

    def send(self, queue: int, header: bytes, frame: Sequence[memoryview | bytes]) -> bool:
        """As in the base class."""
        if len(self.sent) >= self.capacity:
            return False
        self.packets_written += 1
        self.sent.append((queue, header, b"".join(frame)))
        return True

    def set_offloads(self, offloads: Offload) -> None:
        """As in the base class."""
        self.wanted = offloads

    def use_queues(self, count: int) -> None:
        """As in the base class."""
        self.used = count

    def close(self) -> None:
        """Nothing to give back."""
        self.closed = True
        self.stop()
