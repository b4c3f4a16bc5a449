"""Where a ring that broke goes on, on both data planes.

GET_VRING_BASE gives the index of the next available ring entry that the back end will process ("Vring
descriptor index for split virtqueues"): a chain that breaks a rule of the ring was not processed.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from iolane.carriers.vhost_user import FrontEnd
from iolane.carriers.vhost_user.inflight import ENTRY, HEADER, InflightQueue, queue_area
from tests.unit.carriers.vhost_user.sample import ECHO, HELD, Driver, Sample

AddDriver = Callable[..., Driver]
TRACKED = 256
"""Descriptors of a queue that the front end's in-flight area has room for."""


def used_index(driver: Driver) -> int:
    return int.from_bytes(driver.ring.memory.read(driver.ring.used + 2, 2), "little")


@pytest.fixture
def held(front: FrontEnd, add_driver: AddDriver, device: Sample) -> Driver:
    """A ring with two chains in flight, the first of which is available again."""
    driver = add_driver(HELD)
    device.gate.clear()
    first = driver.ring.send(b"ab", 2)
    driver.ring.send(b"cd", 2)
    driver.ring.kick()
    while len(device.seen) < 2:
        front.client.get_features()
    driver.ring.offer(first)
    front.rings[HELD].kick()
    assert front.rings[HELD].broken(30)
    assert device.counters["rejected_head_in_flight"] == 1
    return driver


def test_a_chain_that_is_available_twice_is_not_taken(front: FrontEnd, held: Driver, device: Sample) -> None:
    device.gate.set()
    assert front.stop(HELD) == 2
    assert used_index(held) == 0, "what ends after the ring broke is not shown any more"


def test_it_changes_nothing_of_what_is_in_flight(front: FrontEnd, held: Driver, device: Sample) -> None:
    """The area has both chains, in the order in which they were taken."""
    device.gate.set()
    base = front.stop(HELD)
    assert front.inflight is not None
    content = bytearray(os.pread(front.inflight.fd, front.inflight.shape.mmap_size, 0))
    part = memoryview(content)[HELD * queue_area(TRACKED) :][: queue_area(TRACKED)]
    entries = [ENTRY.unpack_from(part, HEADER.size + ENTRY.size * head) for head in range(TRACKED)]
    assert sorted(order for in_flight, _, order in entries if in_flight) == [0, 1]
    recovery = InflightQueue(part, TRACKED).recover(used_index(held), 64, 0)
    assert recovery.last_available == base
    assert len(recovery.heads) == 2


@pytest.mark.parametrize("wrong", [64, 65535])
def test_what_was_done_before_a_wrong_chain_is_seen(
    front: FrontEnd, add_driver: AddDriver, wrong: int
) -> None:
    """Nobody does it again: who goes on begins with the wrong chain."""
    driver = add_driver(ECHO, start=False)
    for _ in range(3):
        driver.ring.send(b"ab", 2)
    driver.ring.offer(wrong)
    front.start(ECHO, driver.ring)
    assert front.rings[ECHO].broken(30)
    assert front.stop(ECHO) == 3
    assert [used.data for used in driver.ring.collect()] == [b"ba"] * 3


def test_more_chains_than_there_can_be_are_not_taken(front: FrontEnd, add_driver: AddDriver) -> None:
    driver = add_driver()
    driver.ask(b"ab")
    driver.ring.memory.write(driver.ring.available + 2, (1 + 65).to_bytes(2, "little"))
    front.rings[ECHO].kick()
    assert front.rings[ECHO].broken(30)
    assert front.stop(ECHO) == 1
    assert used_index(driver) == 1
