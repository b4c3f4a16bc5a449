"""Network back ends: what a network device is plugged into.

A device pulls: `receive` when it has room for a packet, `send` when it has one; neither ever blocks. What
could not be done at once is announced by one call of the `notify` given to `start`, upon which the device,
under its lock, calls `service()` and tries again. So all of a back end runs under the device's lock, and
nothing is buffered without bound.

A packet is a header, struct virtio_net_hdr_v1 (virtio 1.3, 5.1.6), and an Ethernet frame. A back end without
offloads only ever sees, and gives, headers of zeroes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from iolane.memory.ring import NetPort
from iolane.uapi.tun import Offload
from iolane.uapi.virtio_net import HEADER

__all__ = ["LARGEST_FRAME", "NO_OFFLOAD", "PLAIN_HEADER", "NetBackend", "Notify", "Offload"]

Notify = Callable[[int], None]
LARGEST_FRAME = 14 + 40 + 65535
"""Ethernet header, IPv6 header and the largest payload that it can name (virtio 1.3, 5.1.6.3)."""
PLAIN_HEADER = bytes(HEADER.size)
"""The header of a packet whose checksums are in it and that is not to be cut."""
NO_OFFLOAD = Offload(0)


def nobody(queue: int) -> None:
    """The `notify` of a back end that is not started."""


class NetBackend(ABC):
    """One end of an Ethernet link. Not thread-safe: the device that owns it calls it under its lock.

    Attributes:
        name: as a user would name it.
        queues: how many queue pairs can be used at once.
        offloads: what may be left to the other end, both ways: checksums, segmentation.
        ports: by queue pair, what compiled code moves packets by, beside `receive` and `send`; empty where it
            can't, or does not yet: see `open_port`.
    """

    def __init__(self, name: str, *, queues: int = 1, offloads: Offload = NO_OFFLOAD) -> None:
        self.name = name
        self.queues = queues
        self.offloads = offloads
        self.ports: list[NetPort] = []
        self.packets_read = self.packets_written = 0
        """Those of compiled code are counted by the ports."""
        self.packets_dropped = 0
        """Packets that the host did not take, or that had nowhere to go."""
        self.errors = 0
        self.connections = 0
        self._notify: Notify = nobody

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether there is a network at the other end: it is the guest's link state."""

    @abstractmethod
    def receive(self, queue: int) -> memoryview | bytes | None:
        """The next packet, header and frame, valid until the next call. None: `notify` tells of the next."""

    @abstractmethod
    def send(self, queue: int, header: bytes, frame: Sequence[memoryview | bytes]) -> bool:
        """Send a packet. False: it was not taken, `notify` tells when to try again.

        One that can't be sent at all is taken, and counted as dropped.
        """

    def open_port(self, pair: int) -> NetPort | None:
        """What compiled code may move packets of a queue pair by from now on; None: it can't."""
        return self.ports[pair] if self.ports else None

    def set_offloads(self, offloads: Offload) -> None:
        """What `receive` may leave to the device from now on."""
        return None

    def use_queues(self, count: int) -> None:
        """Packets come in the first `count` queues from now on."""
        return None

    def start(self, notify: Notify) -> None:
        """Begin to announce changes. `notify(queue)` may come from another thread, without the lock."""
        self._notify = notify

    def service(self) -> None:
        """Do what readiness asks for: accept, connect again, write what was held back."""
        return None

    def stop(self) -> None:
        """Announce nothing more; `start` may follow."""
        self._notify = nobody

    @abstractmethod
    def close(self) -> None:
        """Give back what the host lent. May be called twice."""

    def statistics(self) -> dict[str, int | float | str]:
        """Counters, by the names `iolane devices` shows."""
        return {
            "network": self.name,
            "network_connected": int(self.connected),
            "network_connections": self.connections,
            "network_packets_read": self.packets_read + sum(port.packets_read for port in self.ports),
            "network_packets_written": self.packets_written
            + sum(port.packets_written for port in self.ports),
            "network_packets_dropped": self.packets_dropped,
            "network_errors": self.errors,
        }
