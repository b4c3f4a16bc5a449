"""A network device on either data plane, over a memory file and a tap that is a socket.

Everything is served in the caller's thread, so that both planes can be compared step by step.
"""

from __future__ import annotations

import itertools
import os
import random
import struct
from typing import NamedTuple

from iolane.devices.virtio.net import BareNet
from iolane.devices.virtio.net.features import NetFeature
from iolane.memory.signals import Signaller
from iolane.model.virtio import Feature, Status, Virtqueue
from iolane.model.virtio.compiled_ring import CompiledRing, Wires
from iolane.model.virtio.features import BASE_FEATURES, mask
from iolane.model.virtio.queue import split_ring
from iolane.model.virtio.split_ring import Ring
from iolane.testing.drivers.virtio import DriverMemory, DriverRing
from iolane.uapi.virtio_net import HEADER
from tests.unit.devices.virtio.packet_socket import SocketTap

START = 0x10_0000
RINGS = 1 << 20
"""Bytes for rings and what the driver sends; received packets lie behind them."""
BYTES = 4 << 20
SIZE = 32
READY = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
OFFLOADS = mask(
    (
        NetFeature.CSUM,
        NetFeature.HOST_TSO4,
        NetFeature.HOST_TSO6,
        NetFeature.HOST_ECN,
        NetFeature.GUEST_CSUM,
        NetFeature.GUEST_TSO4,
        NetFeature.GUEST_TSO6,
        NetFeature.GUEST_ECN,
    )
)
COMMON = BASE_FEATURES & ~mask((Feature.EVENT_IDX,))
MERGEABLE = mask((NetFeature.MRG_RXBUF,))


class Seen(NamedTuple):
    """What came of a step, as everybody but the device sees it."""

    sent: list[tuple[int, bytes, bytes]]
    used: list[tuple[int, int, int, bytes]]
    memory: bytes
    indexes: tuple[int, ...]
    broken: tuple[str, ...]
    counts: dict[str, object]


class Plane:
    """One device, its guest's memory, and the driver of its two queues."""

    def __init__(self, *, compiled: bool, features: int, mtu: int | None = None) -> None:
        self.compiled = compiled
        self.tap = SocketTap(tells=False)
        self.device = BareNet(backend=self.tap, queue_size=SIZE, mtu=mtu)
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, BYTES)
        self.device.dma.enabled = True
        self.device.dma.map(START, BYTES, fd=self.fd)
        view = memoryview(self.device.dma.host_regions()[0].keep)
        self.view = view
        self.heap = DriverMemory(view[:RINGS], START)
        self.buffers = DriverMemory(view[RINGS:], START + RINGS)
        self.drivers = [DriverRing(self.heap, SIZE, lambda: None, indirect=True) for _ in range(2)]
        self._given: dict[int, list[tuple[int, int]]] = {}
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        wanted = features | (mask((NetFeature.MTU,)) if mtu is not None else 0)
        assert self.device.accept_features(wanted)
        self.device.status = READY

    def _make(self, queue: Virtqueue, last: int, used: int | None) -> Ring:
        path = self.device.compiled_path(queue)
        if not self.compiled:
            return split_ring(queue, last, used)
        return CompiledRing(
            self.device, queue, last, used, path, Wires(self.kicks[queue.index], -1, Signaller().signal)
        )

    def start(self, index: int, base: int = 0, in_flight: tuple[int, ...] = ()) -> None:
        driver = self.drivers[index]
        with self.device.lock:
            queue = self.device.queues[index]
            queue.size = driver.size
            queue.descriptors, queue.available, queue.used = (
                driver.descriptors,
                driver.available,
                driver.used,
            )
            queue.make_ring = self._make
            queue.start(base, None, in_flight)

    def stop(self, index: int) -> int:
        with self.device.lock:
            last = self.device.queues[index].stop()
            self.device.queues[index].reset()
            return last

    # What a driver does.

    def give(self, rooms: list[int], *, indirect: bool = False, readable: bool = False) -> None:
        """A buffer in pieces."""
        pieces = [(self.buffers.allocate(room), room) for room in rooms]
        head = self.drivers[0].add(pieces[:readable], pieces[readable:], indirect=indirect)
        self._given[head] = pieces

    def send(self, packet: bytes, cuts: list[int], *, indirect: bool = False, writable: bool = False) -> None:
        """A packet in pieces."""
        edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(packet)}), len(packet)]
        parts = [packet[start:end] for start, end in itertools.pairwise(edges)]
        self.drivers[1].send(parts, 16 if writable else 0, indirect=indirect)

    def serve(self) -> None:
        """Until nothing happens any more; the transmit queue first, as the network's notice does it."""
        for index in (1, 0):
            with self.device.lock:
                queue = self.device.queues[index]
                ring = queue.ring
                if isinstance(ring, CompiledRing):
                    ring.drain()
                elif ring is not None:
                    queue.kick()
            while self.device.tasks.running:
                pass

    def look(self) -> Seen:
        """What is to be seen, and what the driver takes back with that."""
        with self.device.lock:
            indexes = tuple(
                number
                for queue in self.device.queues
                if queue.ring is not None
                for number in (queue.ring.last_available, queue.ring.used_index)
            )
        used = []
        for index, driver in enumerate(self.drivers):
            for one in driver.collect():
                used.append((index, one.head, one.written, one.data))
                for address, room in self._given.pop(one.head, []) if index == 0 else ():
                    self.buffers.free(address, room)
        broken = tuple(str(queue.rejection) for queue in self.device.queues)
        sent = [*self.tap.sent]
        self.tap.take()
        return Seen(sent, used, self._memory(), indexes, broken, self._counts())

    def _memory(self) -> bytes:
        """But for the flags by which kicks are suppressed: those are each plane's own."""
        content = bytearray(self.view[:RINGS])
        for driver in self.drivers:
            at = driver.used - START
            content[at : at + 2] = bytes(2)
            content[at + 4 + 8 * SIZE :][:2] = bytes(2)
        return bytes(content)

    def _counts(self) -> dict[str, object]:
        """All but what is about kicks, interrupts and threads."""
        shown = self.device.describe()
        own = ("dma_", "tasks_", "network_packets_read")
        return {
            key: value
            for key, value in shown.items()
            if not key.startswith(own)
            and not key.endswith((".kicks", ".interrupts", "_suppressed", ".batches", ".slow"))
        }

    def close(self) -> None:
        self.device.close()
        for fd in (self.fd, *self.kicks):
            os.close(fd)


def header(chance: random.Random, length: int) -> bytes:
    """Most make sense."""
    if chance.random() < 0.5:
        return bytes(HEADER.size)
    flags, gso = chance.choice(((1, 0), (1, 1), (1, 4), (1, 0x81), (2, 0), (0, 1), (1, 3), (0, 0x80), (9, 0)))
    start = chance.randrange(0, max(length, 1))
    return struct.pack(
        "<BBHHHHH",
        flags,
        gso,
        chance.choice((0, 54, 0xFFFF)),
        chance.choice((0, 1448, 1448)),
        start,
        chance.choice((6, 16, 0, 0xFFFF)),
        chance.choice((0, 7)),
    )


def frame(chance: random.Random) -> bytes:
    length = chance.choice((60, 60, 64, 1500, 1514, 1518, 14, 13, 0, 300, 4000, chance.randrange(20000)))
    return chance.randbytes(length)
