"""The network device's rings over vhost-user: who is served, what is given back, what is told."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.backends.net import MemoryNet, Offload
from iolane.backends.net.tap import ALL_OFFLOADS
from iolane.carriers.vhost_user import FrontEnd, SharedMemory, VhostUserServer
from iolane.carriers.vhost_user.choice import PLANES
from iolane.carriers.vhost_user.front_end import USED
from iolane.carriers.vhost_user.protocol import ProtocolFeature
from iolane.devices.virtio.net import BareNet
from iolane.devices.virtio.net.features import NetFeature
from iolane.model.workers import Workers
from iolane.testing.drivers.virtio import DriverMemory, DriverRing, Used
from iolane.uapi.virtio_net import HEADER

PAIRS = 2
MEMORY = 1 << 20
SIZE = 16


def frame(length: int = 60) -> bytes:
    return os.urandom(length)


class Guest:
    """A front end with two queue pairs."""

    def __init__(self, path: Path, memory: SharedMemory, net: MemoryNet) -> None:
        self.net = net
        protocol = (*USED, ProtocolFeature.RARP, ProtocolFeature.MTU)
        self.front = FrontEnd(path, [memory], rings=2 * PAIRS, inflight_size=SIZE, protocol=protocol)
        self.front.connect()
        heap = DriverMemory(memory.view, memory.guest_address)
        self.rings = [DriverRing(heap, SIZE, self.front.kicker(index)) for index in range(2 * PAIRS)]

    def start(self, index: int, base: int = 0) -> None:
        self.front.start(index, self.rings[index], base)

    def give(self, *sizes: int, pair: int = 0) -> None:
        for size in sizes:
            self.rings[2 * pair].send(b"", size)
        self.rings[2 * pair].kick()

    def collect(self, index: int, count: int = 1) -> list[Used]:
        found = self.rings[index].collect()
        while len(found) < count:
            assert self.front.rings[index].wait_call(30), f"{len(found)} of {count}"
            found += self.rings[index].collect()
        return found

    def transmit(self, data: bytes, pair: int = 0) -> None:
        self.rings[2 * pair + 1].send([bytes(HEADER.size), data])
        self.rings[2 * pair + 1].kick()


@pytest.fixture
def net() -> MemoryNet:
    return MemoryNet(queues=PAIRS, offloads=ALL_OFFLOADS)


@pytest.fixture
def device(net: MemoryNet) -> Iterator[BareNet]:
    device = BareNet(backend=net, queues=PAIRS, queue_size=SIZE)
    yield device
    device.close()


@pytest.fixture(params=sorted(PLANES))
def guest(request: pytest.FixtureRequest, device: BareNet, net: MemoryNet, tmp_path: Path) -> Iterator[Guest]:
    plane = PLANES[request.param]
    with Workers(1) as workers:
        with VhostUserServer(device, tmp_path / "s", workers=workers, plane=plane) as server:
            with SharedMemory(MEMORY) as memory:
                guest = Guest(server.path, memory, net)
                yield guest
                guest.front.close()
                assert server.wait_idle(30)


def test_what_is_offered(guest: Guest) -> None:
    """The control queue and what belongs to it is the front end's."""
    assert guest.front.client.get_queue_num() == PAIRS
    assert not guest.front.client.negotiated(ProtocolFeature.CONFIG)
    assert BareNet(backend=guest.net, guest_announce=True).offered >> NetFeature.GUEST_ANNOUNCE & 1
    absent = (NetFeature.GUEST_ANNOUNCE, NetFeature.CTRL_VQ, NetFeature.MAC)
    for feature in (*absent, NetFeature.STATUS, NetFeature.CTRL_RX):
        assert not guest.front.features >> feature & 1
    for feature in (NetFeature.MRG_RXBUF, NetFeature.MQ, NetFeature.HOST_TSO6):
        assert guest.front.features >> feature & 1


def test_packets_both_ways(guest: Guest) -> None:
    guest.start(0)
    guest.start(1)
    out, coming = frame(1500), frame(1514)
    guest.transmit(out)
    guest.collect(1)
    assert guest.net.take() == [out]
    assert guest.net.wanted == ALL_OFFLOADS
    guest.give(1000, 1000)
    guest.net.feed(coming)
    first, second = guest.collect(0, 2)
    assert struct.unpack_from("<H", first.data, 10) == (2,)
    assert first.data[HEADER.size :] + second.data == coming


def test_pairs_in_use_are_those_that_run(guest: Guest) -> None:
    for index in range(2 * PAIRS):
        guest.start(index)
    assert guest.net.used == 2
    guest.give(100, pair=1)
    guest.net.feed(data := frame(), queue=1)
    assert guest.collect(2)[0].data[HEADER.size :] == data
    guest.front.stop(2)
    assert guest.net.used == 1


def test_buffers_that_were_not_enough_are_given_back_at_a_stop(guest: Guest) -> None:
    """A packet waits for its third buffer: none of the first two is lost with the ring's stop."""
    guest.start(0)
    guest.give(500, 500)
    guest.net.feed(data := frame(1200))
    assert guest.front.stop(0) == 0
    guest.start(0)
    guest.give(500)
    parts = guest.collect(0, 3)
    assert b"".join(part.data for part in parts)[HEADER.size :] == data


def test_packets_that_were_not_taken_are_given_back_at_a_stop(guest: Guest) -> None:
    guest.net.capacity = 1
    guest.start(1)
    frames = [frame() for _ in range(3)]
    for data in frames:
        guest.transmit(data)
    guest.collect(1)
    base = guest.front.stop(1)
    assert base == 1
    assert guest.net.take() == frames[:1]
    guest.net.capacity = 8
    guest.start(1, base)
    guest.collect(1, 2)
    assert guest.net.take() == frames[1:]


def test_what_was_not_taken_is_not_in_flight(guest: Guest) -> None:
    """A front end that comes back finds every chain, once."""
    guest.net.capacity = 1
    guest.start(1)
    frames = [frame() for _ in range(3)]
    for data in frames:
        guest.transmit(data)
    guest.collect(1)
    guest.net.capacity = 8
    guest.front.reconnect()
    guest.collect(1, 2)
    assert guest.net.take() == frames


def test_the_front_end_announces_a_guest(guest: Guest, device: BareNet) -> None:
    guest.front.client.send_rarp(bytes.fromhex("525400000001"))
    guest.front.client.set_mtu(1400)
    assert device.front_end_mtu == 1400
    (sent,) = guest.net.take()
    assert sent[6:14] == bytes.fromhex("5254000000018035")
    assert device.guest_offloads == Offload(0)
