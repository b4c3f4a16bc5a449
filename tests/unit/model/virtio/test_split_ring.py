"""The device's side of split virtqueues against virtio 1.3, 2.7; each test names the section."""

from __future__ import annotations

import struct

import pytest

from iolane.model.dma import DmaSpace
from iolane.model.virtio import BrokenRing, RingRejection, SplitRing
from iolane.model.virtio.chain import Chain, cut
from iolane.testing.drivers.virtio import DESCRIPTOR
from iolane.uapi.virtio import DescriptorFlag
from tests.unit.model.virtio.ring_pair import START, RingPair

NEXT, WRITE, INDIRECT = (int(flag) for flag in DescriptorFlag)


def rejected(ring: SplitRing) -> RingRejection:
    with pytest.raises(BrokenRing) as caught:
        ring.pop()
    return caught.value.reason


def offer(pair: RingPair, *descriptors: tuple[int, int, int, int], head: int = 0) -> None:
    """Make descriptors from 0 on available as they are."""
    for index, descriptor in enumerate(descriptors):
        pair.heap.write(pair.driver.descriptors + 16 * index, DESCRIPTOR.pack(*descriptor))
    pair.driver.offer(head)


# Chains (2.7.4, 2.7.5).


@pytest.mark.parametrize("indirect", [False, True])
def test_a_chain_is_what_the_driver_offered(indirect: bool) -> None:
    pair = RingPair()
    pair.driver.send([b"header", b"data"], [5, 1], indirect=indirect)
    chain = pair.device.pop()
    assert chain is not None
    assert chain.read(pair.dma) == b"headerdata"
    assert (chain.readable_length, chain.writable_length) == (10, 6)
    assert chain.write(pair.dma, b"answer!") == 6, "what doesn't fit is left out"
    pair.device.push(chain.head, 6)
    assert pair.driver.collect() == [], "2.7.8.2: not before the index says so"
    pair.device.publish()
    (used,) = pair.driver.collect()
    assert (used.written, used.data) == (6, b"answer")
    assert pair.device.pop() is None


def test_normal_descriptors_may_precede_an_indirect_one() -> None:
    """2.7.5.3.2: the device MUST handle it, and ignore WRITE in the one that refers to the table."""
    pair = RingPair()
    table = pair.heap.allocate(32)
    pair.driver.write_table(table, [0, 1], [(START, 3, 0), (START, 4, WRITE)])
    offer(pair, (START, 2, NEXT, 1), (table, 32, INDIRECT | WRITE, 0))
    chain = pair.device.pop()
    assert chain is not None
    assert (chain.readable, chain.writable) == (((START, 2), (START, 3)), ((START, 4),))


def test_empty_descriptors_hold_nothing() -> None:
    pair = RingPair()
    offer(pair, (0, 0, NEXT, 1), (START, 0, WRITE, 0))
    chain = pair.device.pop()
    assert chain is not None
    assert (chain.readable, chain.writable) == ((), ())


def test_indices_wrap() -> None:
    """2.7.6, 2.7.8: 16 bits, naturally."""
    pair = RingPair()
    pair.driver.available_index = pair.driver.used_seen = pair.driver._announced = 0xFFFE
    for address in (pair.driver.available + 2, pair.driver.used + 2):
        pair.put(address, 0xFFFE)
    pair.device = pair.attach(0xFFFE)
    for number in range(5):
        pair.driver.send(bytes([number]))
        chain = pair.device.pop()
        assert chain is not None
        assert chain.read(pair.dma) == bytes([number])
        pair.device.push(chain.head, 0)
        pair.device.publish()
        assert len(pair.driver.collect()) == 1
    assert (pair.device.last_available, pair.device.used_index) == (3, 3)


def test_a_ring_goes_on_where_it_was() -> None:
    pair = RingPair()
    for _ in range(3):
        pair.driver.send(b"x")
    first = pair.device.pop()
    assert first is not None
    pair.device.push(first.head, 0)
    pair.device.publish()
    again = pair.attach(pair.device.last_available)
    assert again.used_index == 1, "by default what the used ring says"
    assert again.pending() == 2


def test_cut() -> None:
    pieces = [(100, 4), (200, 4), (300, 4)]
    assert cut(pieces, 2, 4) == [(102, 2), (200, 2)]
    assert cut(pieces, 4, 4) == [(200, 4)]
    assert cut(pieces, 11, 100) == [(303, 1)]
    assert cut(pieces, 12, 1) == []
    assert repr(Chain(3, pieces, [])) == "<Chain 3: 12 to read, 0 to write>"


# Notification suppression (2.7.7, 2.7.10).


def used_one(pair: RingPair) -> bool:
    pair.driver.send(b"x")
    chain = pair.device.pop()
    assert chain is not None
    pair.device.push(chain.head, 0)
    pair.device.publish()
    wanted = pair.device.needs_interrupt()
    pair.driver.collect()
    return wanted


def test_the_flag_suppresses_interrupts() -> None:
    pair = RingPair(event_idx=False)
    assert used_one(pair)
    pair.driver.suppress_interrupts()
    assert not used_one(pair)
    pair.driver.suppress_interrupts(False)
    assert used_one(pair)
    assert not pair.device.needs_interrupt(), "nothing was used since"


def test_used_event_asks_for_interrupts() -> None:
    """2.7.7.2: MUST interrupt for the element at used_event; the flag means nothing."""
    pair = RingPair(event_idx=True)
    used_one(pair)
    pair.driver.suppress_interrupts()
    pair.driver.event_idx = False  # collect no longer sets used_event
    pair.driver.ask_interrupt(3)
    assert [used_one(pair) for _ in range(5)] == [False, False, True, False, False]
    pair.driver.ask_interrupt(0xFFFF)
    assert not used_one(pair)


def test_used_event_inside_a_batch_interrupts() -> None:
    pair = RingPair(event_idx=True)
    used_one(pair)
    pair.driver.ask_interrupt(2)
    for _ in range(4):
        pair.driver.send(b"x")
        chain = pair.device.pop()
        assert chain is not None
        pair.device.push(chain.head, 0)
    pair.device.publish()
    assert pair.device.needs_interrupt()


@pytest.mark.parametrize("event_idx", [False, True])
def test_kicks_are_asked_for_and_not(event_idx: bool) -> None:
    """2.7.10.1: flags 0 or 1 without EVENT_IDX, always 0 with it."""
    pair = RingPair(event_idx=event_idx)
    pair.device.disable_kicks()
    assert pair.u16(pair.driver.used) == (0 if event_idx else 1)
    if event_idx:
        pair.driver._announced = 0
        pair.driver.send(b"x")
        assert pair.driver.kick(), "avail_event is still 0"
    pair.driver.send(b"x")
    assert not pair.driver.kick()
    assert pair.device.enable_kicks(), "what came before is seen now"
    while pair.device.pop():
        pass
    assert not pair.device.enable_kicks()
    pair.driver.send(b"x")
    assert pair.driver.kick()


# What is wrong with rings.


@pytest.mark.parametrize(
    ("size", "places", "reason"),
    [
        (0, (0, 0, 0), RingRejection.SIZE),
        (3, (0, 0, 0), RingRejection.SIZE),
        (65536, (0, 0, 0), RingRejection.SIZE),
        (8, (8, 0, 0), RingRejection.UNALIGNED),
        (8, (0, 1, 0), RingRejection.UNALIGNED),
        (8, (0, 0, 2), RingRejection.UNALIGNED),
        (8, (2**64 - 16, 0, 0), RingRejection.RING_ADDRESS),
        (8, (0, 2**64 - 4, 0), RingRejection.RING_ADDRESS),
        (8, (0, 0, 2**64 - 8), RingRejection.RING_ADDRESS),
        (8, (0, 0, 0), RingRejection.RING_UNREACHABLE),
    ],
)
def test_impossible_rings(size: int, places: tuple[int, int, int], reason: RingRejection) -> None:
    """2.7: powers of two up to 32768; alignment 16, 2 and 4."""
    with pytest.raises(BrokenRing) as caught:
        SplitRing(DmaSpace(), size, *places)
    assert caught.value.reason is reason


def test_indices_and_heads() -> None:
    pair = RingPair()
    pair.put(pair.driver.available + 2, 9)
    assert rejected(pair.device) is RingRejection.AVAILABLE_OVERRUN
    pair = RingPair()
    pair.driver.offer(8)
    assert rejected(pair.device) is RingRejection.HEAD_OUT_OF_RANGE


def table_of(pair: RingPair, *descriptors: tuple[int, int, int, int]) -> int:
    data = b"".join(struct.pack("<QIHH", *descriptor) for descriptor in descriptors)
    table = pair.heap.allocate(len(data))
    pair.heap.write(table, data)
    return table


@pytest.mark.parametrize(
    ("descriptors", "reason"),
    [
        ([(START, 1, NEXT, 8)], RingRejection.NEXT_OUT_OF_RANGE),
        ([(START, 1, NEXT, 0)], RingRejection.LOOP),
        ([(START, 1, NEXT, 1), (START, 1, NEXT, 0)], RingRejection.LOOP),
        ([(START, 1, NEXT | WRITE, 1), (START, 1, 0, 0)], RingRejection.READABLE_AFTER_WRITABLE),
        ([(START, 2**32 - 1, NEXT, 1), (START, 2, 0, 0)], RingRejection.LENGTH_OVERFLOW),
        ([(2**64 - 1, 2, 0, 0)], RingRejection.BUFFER_OUT_OF_RANGE),
        ([(START, 16, INDIRECT | NEXT, 1)], RingRejection.INDIRECT_NEXT),
        ([(START, 0, INDIRECT, 0)], RingRejection.INDIRECT_LENGTH),
        ([(START, 17, INDIRECT, 0)], RingRejection.INDIRECT_LENGTH),
        ([(0x10, 16, INDIRECT, 0)], RingRejection.INDIRECT_UNREACHABLE),
    ],
)
def test_wrong_chains(descriptors: list[tuple[int, int, int, int]], reason: RingRejection) -> None:
    """2.7.4.2, 2.7.5.2, 2.7.5.3.1."""
    pair = RingPair()
    offer(pair, *descriptors)
    assert rejected(pair.device) is reason


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ([(START, 16, INDIRECT, 0)], RingRejection.INDIRECT_NESTED),
        ([(START, 1, NEXT, 1)], RingRejection.NEXT_OUT_OF_RANGE),
        ([(START, 1, NEXT, 0)], RingRejection.LOOP),
        ([(START, 1, NEXT, number + 1) for number in range(9)], RingRejection.CHAIN_TOO_LONG),
        ([(START, 1, WRITE | NEXT, 1), (START, 1, 0, 0)], RingRejection.READABLE_AFTER_WRITABLE),
    ],
)
def test_wrong_tables(table: list[tuple[int, int, int, int]], reason: RingRejection) -> None:
    pair = RingPair()
    offer(pair, (table_of(pair, *table), 16 * len(table), INDIRECT, 0))
    assert rejected(pair.device) is reason


def test_indirect_without_the_feature() -> None:
    pair = RingPair(indirect=False)
    offer(pair, (START, 16, INDIRECT, 0))
    assert rejected(pair.device) is RingRejection.INDIRECT_NOT_NEGOTIATED


def test_no_dma_no_ring() -> None:
    pair = RingPair()
    pair.dma.enabled = False
    assert rejected(pair.device) is RingRejection.BUS_MASTER_OFF
    pair.dma.enabled = True
    pair.dma.unmap_all()
    assert rejected(pair.device) is RingRejection.RING_UNREACHABLE


def test_kicks_that_an_earlier_life_disabled_are_asked_for_again() -> None:
    """It was killed while it looked at the ring; the driver would never kick again."""
    pair = RingPair()
    pair.device.disable_kicks()
    assert pair.u16(pair.driver.used) == 1
    pair.attach(0, 0).enable_kicks()
    assert pair.u16(pair.driver.used) == 0
