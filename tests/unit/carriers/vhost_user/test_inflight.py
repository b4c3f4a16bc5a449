"""What was in flight when a back end died is done again, all of it, once, in order: wherever it died."""

from __future__ import annotations

import errno
import os
import random
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import iolane.carriers.vhost_user.inflight as inflight_module
import iolane.carriers.vhost_user.ring as ring_module
import iolane.model.virtio.split_ring as split_ring_module
from iolane.carriers.vhost_user import FrontEnd, Rejection, SharedMemory, VhostUserServer
from iolane.carriers.vhost_user.client import Inflight
from iolane.carriers.vhost_user.inflight import (
    ENTRY,
    HEADER,
    InflightArea,
    InflightQueue,
    Shape,
    make_area,
    queue_area,
)
from iolane.carriers.vhost_user.protocol import INFLIGHT, Request
from iolane.carriers.vhost_user.ring import TracedRing
from iolane.model.dma import DmaSpace
from iolane.model.workers import Workers
from iolane.testing.drivers.virtio import DriverMemory, DriverRing
from tests.unit.carriers.vhost_user.sample import ECHO, HELD, WANTED, Driver, RawFront, Sample, open_fds

AddDriver = Callable[..., Driver]
SIZE = 8


def test_sizes_are_those_of_the_specification() -> None:
    """QueueRegionSplit has 16 bytes before its entries, DescStateSplit has 16; libvhost-user aligns to 64."""
    assert (HEADER.size, ENTRY.size) == (16, 16)
    assert queue_area(128) == 2112
    assert queue_area(1) == 64
    assert struct.unpack("<B5xHQ", ENTRY.pack(1, 2, 3)) == (1, 2, 3)


def test_a_new_area_can_t_be_shortened() -> None:
    fd, shape = make_area(Shape(0, 0, 2, 128))
    assert shape.mmap_size == os.fstat(fd).st_size == 2 * 2112
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    area = InflightArea(fd, shape)
    first, second = area.queue(0), area.queue(1)
    assert first is not None
    assert second is not None
    assert second.address - first.address == 2112
    assert area.queue(2) is None
    area.close()
    os.close(fd)


def test_an_unused_area_goes_on_where_the_front_end_says() -> None:
    queue = InflightQueue(memoryview(bytearray(queue_area(SIZE))), SIZE)
    assert queue.recover(7, SIZE, 7) == (7, [])
    assert queue.recover(9, SIZE, 0) == (9, [])


def test_hostile_contents_are_bounded() -> None:
    """Every value may be anything: what comes out are heads of the ring, each once."""
    dice = random.Random(1)
    for _ in range(500):
        content = bytearray(dice.randbytes(queue_area(SIZE)))
        HEADER.pack_into(content, 0, 0, 1, dice.randrange(65536), dice.randrange(12), dice.randrange(65536))
        for head in range(SIZE):
            content[HEADER.size + ENTRY.size * head] = dice.choice([0, 1, 1, 255])
        queue = InflightQueue(memoryview(content), SIZE)
        used = dice.randrange(65536)
        last, heads = queue.recover(used, SIZE, 0)
        assert len(set(heads)) == len(heads) <= SIZE
        assert set(heads) <= set(range(SIZE))
        assert last == (used + len(heads)) & 0xFFFF
        queue.take(200)
        queue.give_back(200)
        queue.published(1)


class Crash:
    """Copies of all that outlives a back end, taken before each line of the code that changes it."""

    def __init__(self, memory: bytearray, area: bytearray) -> None:
        self.copies: list[tuple[bytes, bytes]] = []
        self._memory, self._area = memory, area
        self._files = {inflight_module.__file__, ring_module.__file__, split_ring_module.__file__}

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(before)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        copy = (bytes(self._memory), bytes(self._area))
        if not self.copies or self.copies[-1] != copy:
            self.copies.append(copy)
        return self._trace


class Pair:
    """A ring in plain memory, its driver and its device's side."""

    def __init__(self, memory: bytearray, area: bytearray, *, driver: bool = True) -> None:
        self.memory = memory
        self.dma = DmaSpace(page_size=1)
        self.dma.map(0, len(memory), buffer=memory)
        self.heap = DriverMemory(memoryview(memory), 0)
        self.driver = DriverRing(self.heap, SIZE, lambda: None) if driver else None
        self.inflight = InflightQueue(memoryview(area), SIZE)

    def ring(self, descriptors: int, available: int, used: int, last: int) -> TracedRing:
        ring = TracedRing(self.dma, SIZE, descriptors, available, used, last_available=last)
        ring.inflight = self.inflight
        return ring


def test_a_crash_at_any_line_loses_and_repeats_nothing() -> None:
    """For each state of memory between two lines: every chain is either with the driver, or found in flight,
    or still in the available ring; those in flight come in the order in which they were taken.
    """
    dice = random.Random(7)
    states = checked = 0
    for _ in range(12):
        memory, area = bytearray(8192), bytearray(queue_area(SIZE))
        pair = Pair(memory, area)
        assert pair.driver is not None
        places = (pair.driver.descriptors, pair.driver.available, pair.driver.used)
        recovery = pair.inflight.recover(0, SIZE, 0)
        ring = pair.ring(*places, recovery.last_available)
        order: list[int] = []
        taken: dict[int, Any] = {}
        for _ in range(12):
            free = SIZE - pair.driver.outstanding
            offered = dice.randint(0, free)
            order += [pair.driver.send(b"1234", 0) for _ in range(offered)]
            crash = Crash(memory, area)
            with crash.everywhere():
                for _ in range(dice.randint(0, SIZE)):
                    chain = ring.pop()
                    if chain is not None:
                        taken[chain.head] = chain
                for head in dice.sample(sorted(taken), dice.randint(0, len(taken))):
                    ring.push(head, 0)
                    del taken[head]
                ring.publish()
            for copy in crash.copies:
                checked += check_recovery(copy, places, order)
            states += len(crash.copies)
            for used in pair.driver.collect():
                order.remove(used.head)
    assert states > 1500
    assert checked > 3000


def check_recovery(copy: tuple[bytes, bytes], places: tuple[int, int, int], order: list[int]) -> int:
    """Recover from a state; how many chains were in flight. `order` is what the driver offered and has not
    taken back, in that order.
    """
    memory, area = bytearray(copy[0]), bytearray(copy[1])
    pair = Pair(memory, area, driver=False)
    descriptors, available, used = places
    used_index = int.from_bytes(memory[used + 2 : used + 4], "little")
    available_index = int.from_bytes(memory[available + 2 : available + 4], "little")
    recovery = pair.inflight.recover(used_index, SIZE, 0)
    ring = pair.ring(descriptors, available, used, recovery.last_available)
    left = []
    while (chain := ring.pop()) is not None:
        left.append(chain.head)
    collected_before = available_index - len(order)
    finished = {
        int.from_bytes(memory[used + 4 + 8 * (at % SIZE) : used + 8 + 8 * (at % SIZE)], "little")
        for at in range(collected_before, used_index)
    }
    in_flight = recovery.heads
    assert sorted([*in_flight, *left, *finished]) == sorted(order)
    assert [head for head in order if head not in finished] == [*in_flight, *left]
    return len(in_flight)


# Over the wire.


class Hung:
    """A back end that takes chains and never gives them back, as if it had been killed."""

    def __init__(self, path: Path, workers: Workers) -> None:
        self.device = Sample()
        self.server = VhostUserServer(self.device, path, workers=workers)
        self.server.start()

    def stop(self) -> None:
        """End it: what it gives back now goes nowhere, as nobody shares memory with it any more."""
        self.device.gate.set()
        self.server.stop()
        self.device.close()


def copied(memory: SharedMemory) -> SharedMemory:
    """The same content in other memory: what a back end that is gone wrote later is not in it."""
    other = SharedMemory(
        memory.region.size,
        guest_address=memory.guest_address,
        user_address=memory.region.user_address,
    )
    other.view[:] = memory.view
    return other


def copied_area(area: Inflight) -> Inflight:
    fd = os.memfd_create("area", os.MFD_CLOEXEC)
    os.pwrite(fd, os.pread(area.fd, area.shape.mmap_size, 0), 0)
    return Inflight(fd, area.shape)


def test_a_dead_back_end_s_work_is_done_again(tmp_path: Path, memory: SharedMemory) -> None:
    """One takes four chains and dies; another one, with the same area, does them, in order."""
    with Workers(6) as workers:
        one, two = Hung(tmp_path / "one", workers), Hung(tmp_path / "two", workers)
        front = FrontEnd(tmp_path / "one", [memory], wanted=WANTED, rings=2, inflight_size=64)
        front.connect()
        driver = Driver(DriverMemory(memory.view, memory.guest_address), front.kicker(HELD), lambda _: False)
        front.start(HELD, driver.ring)
        one.device.gate.clear()
        for number in range(4):
            driver.ring.send(b"a%d" % number, 2)
        driver.ring.kick()
        while len(one.device.seen) < 4:
            front.client.get_features()
        again = FrontEnd(tmp_path / "two", [copied(memory)], wanted=WANTED, rings=2)
        assert front.inflight is not None
        again.inflight = copied_area(front.inflight)
        again.rings[HELD].layout, again.rings[HELD].started = driver.ring, True
        again.connect()
        stopped = again.stop(HELD)
        one.device.gate.set()
        assert stopped == 4
        assert two.device.seen == [b"a0", b"a1", b"a2", b"a3"]
        assert two.server.statistics.resubmitted == 4
        driver.ring.memory.view = again.memory[0].view
        assert sorted(used.data for used in driver.ring.collect()) == [b"0a", b"1a", b"2a", b"3a"]
        one.stop()
        for each in (front, again):
            each.close()
        again.memory[0].close()
        two.stop()


def test_a_clean_stop_leaves_nothing_in_flight(front: FrontEnd, add_driver: AddDriver) -> None:
    driver = add_driver(HELD)
    for _ in range(3):
        driver.ask(b"ab")
    assert front.stop(HELD) == 3
    assert front.inflight is not None
    content = os.pread(front.inflight.fd, front.inflight.shape.mmap_size, 0)
    part = content[queue_area(256) :]
    assert HEADER.unpack_from(part)[1:] == (1, 256, HEADER.unpack_from(part)[3], 3)
    assert not any(part[HEADER.size + ENTRY.size * head] for head in range(256))


def test_shapes_that_can_t_be(raw: RawFront, server: VhostUserServer) -> None:
    for queues, size in ((0, 64), (3, 64), (1, 0), (1, 32769)):
        answer = raw.ask(Request.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, queues, size))
        assert answer == bytes(INFLIGHT.size)
    assert server.statistics.rejections[Rejection.INFLIGHT_SHAPE] == 4


def test_areas_that_can_t_be(raw: RawFront, server: VhostUserServer) -> None:
    fd = os.memfd_create("area")
    os.ftruncate(fd, 4096)
    before = open_fds()
    for payload in (
        INFLIGHT.pack(1000, 0, 1, 64),
        INFLIGHT.pack(4096, 4096, 1, 64),
        INFLIGHT.pack(4096, (1 << 64) - 4096, 1, 64),
        INFLIGHT.pack(8192, 0, 2, 256),
    ):
        assert raw.number(Request.SET_INFLIGHT_FD, payload, fds=[fd]) == errno.EBADF
    assert raw.number(Request.SET_INFLIGHT_FD, INFLIGHT.pack(4096, 0, 1, 64), fds=[fd]) == 0
    assert raw.number(Request.SET_INFLIGHT_FD, INFLIGHT.pack(4096, 0, 1, 64)) == errno.EBADF
    assert open_fds() == before
    os.close(fd)


def test_an_area_that_is_too_small_for_the_ring(
    server: VhostUserServer, memory: SharedMemory, heap: DriverMemory
) -> None:
    with FrontEnd(server.path, [memory], wanted=WANTED, inflight_size=16) as front:
        driver = Driver(heap, front.kicker(ECHO), front.rings[ECHO].wait_call)
        with pytest.raises(Exception, match="SET_VRING_ENABLE"):
            front.start(ECHO, driver.ring)
    assert server.statistics.rejections[Rejection.VRING_NUM] == 1


def test_a_truncated_area_stops_nobody(
    server: VhostUserServer, memory: SharedMemory, heap: DriverMemory
) -> None:
    with FrontEnd(server.path, [memory], wanted=WANTED, inflight_size=64) as front:
        fd = os.memfd_create("area")
        os.ftruncate(fd, 8192)
        front.client.tell(Request.SET_INFLIGHT_FD, INFLIGHT.pack(8192, 0, 1, 64), [fd])
        driver = Driver(heap, front.kicker(ECHO), front.rings[ECHO].wait_call)
        front.start(ECHO, driver.ring)
        assert driver.ask(b"ab") == b"ba"
        os.ftruncate(fd, 0)
        assert driver.ask(b"cd") == b"dc"
        os.close(fd)
