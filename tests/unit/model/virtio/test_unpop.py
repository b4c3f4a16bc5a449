"""Chains that a device has no use for yet are available again, as if they had not been taken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from iolane.model.virtio import Feature, Status, Virtqueue
from iolane.testing.drivers.virtio import DriverMemory, DriverRing
from tests.unit.model.virtio.sample import Echo

START, SIZE = 0x1_0000, 1 << 16
VERSION_1 = 1 << Feature.VERSION_1


class Taker(Echo):
    """Looks at everything and takes nothing, until it may."""

    def __init__(self) -> None:
        super().__init__(queues=1)
        self.taking = False
        self.looked: list[list[int]] = []

    def on_kick(self, queue: Virtqueue) -> None:
        chains = []
        while (chain := queue.pop()) is not None:
            chains.append(chain)
        self.looked.append([chain.head for chain in chains])
        if self.taking:
            for chain in chains:
                queue.push(chain)
        else:
            queue.unpop(chains)


@pytest.fixture
def device() -> Iterator[Taker]:
    device = Taker()
    device.dma.map(START, SIZE, buffer=memoryview(bytearray(SIZE)))
    device.driver_features = VERSION_1 | 1 << Feature.EVENT_IDX
    device.write_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
    device.write_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK)
    yield device
    device.close()


@pytest.fixture
def ring(device: Taker) -> DriverRing:
    heap = DriverMemory(device.dma.view(START, SIZE, write=True), START)
    queue = device.queues[0]
    ring = DriverRing(heap, 16, queue.kick, event_idx=True)
    queue.descriptors, queue.available, queue.used = ring.descriptors, ring.available, ring.used
    return ring


def offer(ring: DriverRing, count: int) -> list[int]:
    heads = [ring.send(b"x") for _ in range(count)]
    ring.kick()
    return heads


def test_they_come_again_in_order(device: Taker, ring: DriverRing) -> None:
    queue = device.queues[0]
    queue.start()
    heads = offer(ring, 3)
    assert (device.looked[-1], queue.in_flight, queue.chains) == (heads, {}, 0)
    assert queue.save().last_available == 0
    heads += offer(ring, 2)
    assert device.looked[-1] == heads
    device.taking = True
    heads += offer(ring, 1)
    assert device.looked[-1] == heads
    assert [used.head for used in ring.collect()] == heads
    assert (queue.chains, queue.save().last_available) == (6, 6)


def test_the_driver_kicks_for_the_next_one(device: Taker, ring: DriverRing) -> None:
    """However often they are looked at: its event is behind what was seen, not at what is taken."""
    device.queues[0].start()
    for count in range(1, 5):
        offer(ring, 1)
        assert ring.kicks == count
        device.queues[0].service()
    assert len(device.looked[-1]) == 4


def test_those_of_an_earlier_life_stay_the_first(device: Taker, ring: DriverRing) -> None:
    """They are not in the available ring any more."""
    queue = device.queues[0]
    heads = [ring.send(b"x") for _ in range(4)]
    queue.start(last_available=2, in_flight=heads[:2])
    for _ in range(2):
        queue.service()
        assert device.looked[-1] == heads
        assert queue.save().last_available == 2
        assert queue.save().in_flight == heads[:2]
    device.taking = True
    queue.service()
    assert [used.head for used in ring.collect()] == heads
    assert queue.save().last_available == 4


def test_a_stop_says_where_to_go_on(device: Taker, ring: DriverRing) -> None:
    queue = device.queues[0]
    queue.start()
    heads = offer(ring, 3)
    assert queue.stop() == 0
    device.taking = True
    queue.start()
    assert [used.head for used in ring.collect()] == heads
