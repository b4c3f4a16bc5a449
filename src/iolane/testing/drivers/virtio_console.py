"""A driver of virtio console functions (virtio 1.3, 5.3), over the device itself."""

from __future__ import annotations

import struct
from typing import NamedTuple

from iolane.devices.virtio.console import ConsoleFunction
from iolane.testing.drivers.virtio import DriverRing
from iolane.testing.drivers.virtio_pci import VirtioPciDriver
from iolane.uapi.virtio import ConsoleEvent

CONTROL = struct.Struct("<IHH")
CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3


class Control(NamedTuple):
    """A message of the control receive queue."""

    port: int
    event: ConsoleEvent
    value: int
    data: bytes


class VirtioConsoleDriver(VirtioPciDriver[ConsoleFunction]):
    """Ports by number; buffers are given as they are needed."""

    def receive_ring(self, port: int) -> DriverRing:
        """The queue of a port's input (5.3.2)."""
        return self.rings[0 if port == 0 else 2 + 2 * port]

    def transmit_ring(self, port: int) -> DriverRing:
        """The queue of a port's output."""
        return self.rings[1 if port == 0 else 3 + 2 * port]

    def give(self, port: int = 0, size: int = 64, count: int = 1) -> None:
        """Buffers for input."""
        for _ in range(count):
            self.receive_ring(port).send(b"", size)
        self.receive_ring(port).kick()

    def received(self, port: int = 0) -> bytes:
        """The input that has come."""
        return b"".join(used.data for used in self.receive_ring(port).collect())

    def transmit(self, data: bytes, port: int = 0) -> int:
        """Output; returns how many buffers came back."""
        self.transmit_ring(port).send(data)
        self.transmit_ring(port).kick()
        return self.transmitted(port)

    def transmitted(self, port: int = 0) -> int:
        """Output buffers that came back."""
        return len(self.transmit_ring(port).collect())

    def give_control(self, count: int = 8, size: int = 128) -> None:
        """Buffers for control messages."""
        for _ in range(count):
            self.rings[CONTROL_RECEIVE].send(b"", size)
        self.rings[CONTROL_RECEIVE].kick()

    def control(self) -> list[Control]:
        """Control messages that have come."""
        found = []
        for used in self.rings[CONTROL_RECEIVE].collect():
            port, event, value = CONTROL.unpack_from(used.data)
            found.append(Control(port, ConsoleEvent(event), value, used.data[CONTROL.size :]))
        return found

    def tell(self, port: int, event: int, value: int = 0) -> None:
        """Send a control message."""
        self.rings[CONTROL_TRANSMIT].send(CONTROL.pack(port, event, value))
        self.rings[CONTROL_TRANSMIT].kick()
        self.rings[CONTROL_TRANSMIT].collect()
