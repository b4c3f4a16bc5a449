"""A driver of virtio network functions (virtio 1.3, 5.1), over the device itself."""

from __future__ import annotations

import struct
from typing import NamedTuple

from iolane.devices.virtio.net import NetFunction
from iolane.devices.virtio.net.features import NetFeature
from iolane.devices.virtio.net.header import PacketHeader
from iolane.testing.drivers.virtio import DriverRing
from iolane.testing.drivers.virtio_pci import VirtioPciDriver
from iolane.uapi.virtio_net import HEADER, Ack

PLAIN = PacketHeader(0, 0, 0, 0, 0, 0, 0)


class Packet(NamedTuple):
    """A packet that came in."""

    header: PacketHeader
    frame: bytes


class VirtioNetDriver(VirtioPciDriver[NetFunction]):
    """Queue pairs by number; buffers are given as they are needed."""

    def receive_ring(self, pair: int = 0) -> DriverRing:
        """A receive queue (5.1.2)."""
        return self.rings[2 * pair]

    def transmit_ring(self, pair: int = 0) -> DriverRing:
        """A transmit queue."""
        return self.rings[2 * pair + 1]

    @property
    def control_ring(self) -> DriverRing:
        """The control queue: behind the pairs, and without MQ there is one."""
        return self.rings[-1] if self.has(NetFeature.MQ) else self.rings[2]

    def give(self, count: int = 8, size: int = 2048, pair: int = 0) -> None:
        """Buffers for packets."""
        for _ in range(count):
            self.receive_ring(pair).send(b"", size)
        self.receive_ring(pair).kick()

    def received(self, pair: int = 0) -> list[Packet]:
        """The packets that have come, merged."""
        found, used = [], self.receive_ring(pair).collect()
        while used:
            header = PacketHeader.unpack(used[0].data)
            assert header.num_buffers >= 1
            data = b"".join(part.data for part in used[: header.num_buffers])
            assert len(used) >= header.num_buffers
            del used[: header.num_buffers]
            found.append(Packet(header, data[HEADER.size :]))
        return found

    def transmit(self, *frames: bytes, header: PacketHeader = PLAIN, pair: int = 0) -> int:
        """Send packets with one kick; how many buffers came back."""
        ring = self.transmit_ring(pair)
        for frame in frames:
            ring.send([header.pack(), frame])
        ring.kick()
        return self.transmitted(pair)

    def transmitted(self, pair: int = 0) -> int:
        """Transmit buffers that came back."""
        return len(self.transmit_ring(pair).collect())

    def command(self, kind: int, command: int, data: bytes = b"") -> Ack:
        """One command of the control queue, from kick to answer."""
        self.control_ring.send([bytes((kind, command)), data], 1)
        self.control_ring.kick()
        (used,) = self.control_ring.collect()
        return Ack(used.data[0])

    def set_tables(self, unicast: list[bytes], multicast: list[bytes]) -> bytes:
        """Data of MAC_TABLE_SET."""
        tables = (unicast, multicast)
        return b"".join(struct.pack("<I", len(table)) + b"".join(table) for table in tables)
