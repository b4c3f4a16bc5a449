"""Transfers under way in io_uring. A pipe stands for the image: a read ends when the test wants it to."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from iolane.memory.mapping import Mapping
from iolane.memory.ring import CHAIN, HEAD_IN_FLIGHT, BlockPath
from tests.unit.memory.ring_rig import DIRECT, FLUSH, IN, MAPPED, START, WAIT, RingRig, path_of

LOG = 4096
ENTRY = struct.Struct("<B5xHQ")
HEADER = struct.Struct("<QHHHH")


class Pipe:
    """Data for reads that wait."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.path = BlockPath(self.read_end, 1 << 20, DIRECT, own_fd=True)

    def fill(self, count: int = 1) -> None:
        for _ in range(count):
            os.write(self.write_end, b"d" * 512)

    def end(self) -> None:
        """Every read from now on, and every one that waits, gets nothing."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.end()


def wait_taken(rig: RingRig, count: int) -> None:
    while rig.queue.last_available != count:
        rig.driver._kick()


def test_a_stop_waits_for_what_is_under_way(pipe: Pipe) -> None:
    with RingRig(pipe.path) as rig:
        heads = {rig.send(IN, 0, 512) for _ in range(2)}
        rig.driver.kick()
        wait_taken(rig, 2)
        rig.queue.stop()
        assert rig.thread is not None
        rig.thread.join(0.05)
        assert rig.thread.is_alive()
        rig.send(IN, 0, 512)
        rig.driver.kick()
        pipe.fill(2)
        rig.thread.join(WAIT)
        assert not rig.thread.is_alive()
        assert {used.head for used in rig.driver.collect()} == heads
        assert rig.queue.last_available == 2, "after the stop nothing is taken"
        pipe.fill()
        rig.start()
        rig.wait(1)


def test_failed_transfers_are_done_again_by_python(pipe: Pipe) -> None:
    """As many as a queue has, while more are taken: each is remembered once."""
    with RingRig(pipe.path, size=1024, answer=True) as rig:
        for _ in range(256):
            rig.send(IN, 0, 512, indirect=True)
        rig.driver.kick()
        wait_taken(rig, 256)
        for _ in range(512):
            rig.send(IN, 0, 512, indirect=True)
        pipe.end()
        rig.wait(768)
        assert len(rig.events) == 768
        assert {event for event, _ in rig.events} == {CHAIN}
        assert rig.queue.requests == 0


def test_a_short_transfer_is_done_again_by_python(pipe: Pipe) -> None:
    with RingRig(pipe.path) as rig:
        head = rig.send(IN, 0, 1024)
        pipe.fill(1)
        rig.wait(1)
        assert rig.events == [(CHAIN, head)]


def test_more_chains_than_flights(pipe: Pipe) -> None:
    """The rest waits in the available ring, and is not forgotten."""
    with RingRig(pipe.path, size=512) as rig:
        for _ in range(300):
            rig.send(IN, 0, 512, indirect=True)
        rig.driver.kick()
        wait_taken(rig, 256)
        for _ in range(10):
            pipe.fill(30)
        rig.wait(300)
        assert rig.events == []


def test_what_is_under_way_is_in_flight(pipe: Pipe) -> None:
    with RingRig(pipe.path) as rig:
        head = rig.send(IN, 0, 512)
        rig.driver.kick()
        wait_taken(rig, 1)
        rig.driver.offer(head)
        rig.driver.kick()
        assert rig.wait_event() == (HEAD_IN_FLIGHT, head)
        pipe.fill()


def marked(log: Mapping) -> set[int]:
    """Guest pages that are marked, relative to the memory's start."""
    bits = int.from_bytes(bytes(memoryview(log)), "little")
    return {page for page in range(LOG * 8) if bits >> page & 1}


def shared(size: int) -> Mapping:
    fd = os.memfd_create("shared")
    os.ftruncate(fd, size)
    mapping = Mapping(fd, size)
    os.close(fd)
    return mapping


def test_a_page_is_marked_after_it_was_written(pipe: Pipe) -> None:
    log = shared((START >> 15) + LOG)
    first = START >> 12
    with RingRig(pipe.path, log=(log.address, log.length, START), keep=log) as rig:
        data = rig.heap.allocate(512, 4096)
        header, status = rig.heap.allocate(16), rig.heap.allocate(1)
        rig.heap.write(header, bytes(16))
        rig.driver.add([(header, 16)], [(data, 512), (status, 1)])
        rig.driver.kick()
        wait_taken(rig, 1)
        bits = memoryview(log)

        def is_marked(address: int) -> bool:
            return bool(bits[(address >> 12) // 8] >> (address >> 12) % 8 & 1)

        assert not is_marked(data)
        pipe.fill()
        rig.wait(1)
        assert rig.heap.read(data, 512) == b"d" * 512
        assert is_marked(data)
        assert is_marked(status)
        assert is_marked(START), "the used ring, as it is called in the log"
        assert not any(bits[: first // 8])
        bits.release()


def test_marks_of_the_used_ring_alone(pipe: Pipe) -> None:
    """Event index, elements and index are written; buffers of chains that Python has are Python's to mark."""
    log = shared(LOG)
    with RingRig(pipe.path, log=(log.address, log.length, 0x7000), keep=log, event_idx=True) as rig:
        rig.send(FLUSH, 0, 0)
        rig.wait(1)
    assert marked(log) == {7}


def test_marks_are_told_once_a_batch() -> None:
    """By an eventfd; what it costs is no system call a request."""
    log, signal, image = shared((START >> 15) + LOG), os.eventfd(0, os.EFD_NONBLOCK), os.memfd_create("image")
    os.ftruncate(image, 1 << 20)
    path = path_of(image, 1 << 20, MAPPED)
    rig = RingRig(path, size=64, log=(log.address, log.length, START), log_signal=signal, keep=log)
    for _ in range(20):
        rig.send(IN, 0, 512)
    with rig:
        rig.wait(20)
    assert 1 <= os.eventfd_read(signal) <= 8, "a batch, and the wish for kicks around two sleeps"
    os.close(signal)
    os.close(image)


def test_a_log_that_is_too_short_is_not_left(pipe: Pipe) -> None:
    log = shared(8192)
    with RingRig(pipe.path, log=(log.address, 1, 2**64 - 4096), keep=log) as rig:
        rig.send(IN, 0, 512)
        pipe.fill()
        rig.wait(1)
    assert marked(log) == set()


def test_the_in_flight_area(pipe: Pipe) -> None:
    """vhost-user, "Inflight I/O tracking": an entry counts from the taking until after the used index."""
    size = 16
    area = shared(4096)
    view = memoryview(area)
    HEADER.pack_into(view, 0, 0, 1, size, 0, 0)
    ENTRY.pack_into(view, HEADER.size + 16 * 9, 1, 0, 41)
    with RingRig(pipe.path, size=size, inflight=area.address, keep=area) as rig:
        heads = [rig.send(IN, 0, 512) for _ in range(2)]
        rig.driver.kick()
        wait_taken(rig, 2)
        entries = [ENTRY.unpack_from(view, HEADER.size + 16 * head) for head in heads]
        assert [entry[0] for entry in entries] == [1, 1]
        assert [entry[2] for entry in entries] == [42, 43], "the order goes on from what was found"
        pipe.fill(2)
        given = [used.head for used in rig.wait(2)]
        rig.stop()
        entries = [ENTRY.unpack_from(view, HEADER.size + 16 * head) for head in heads]
        assert [entry[0] for entry in entries] == [0, 0]
        _, _, _, last, used_index = HEADER.unpack_from(view)
        assert (last, used_index) == (given[-1], 2)
        assert ENTRY.unpack_from(view, HEADER.size + 16 * given[1])[1] == given[0]
    view.release()


def test_what_the_driver_writes_into_the_used_ring_means_nothing(pipe: Pipe) -> None:
    """The entries that are cleared are those that were given back, not those that guest memory names."""
    area = shared(4096)
    view = memoryview(area)
    HEADER.pack_into(view, 0, 0, 1, 16, 0, 0)
    with RingRig(pipe.path, inflight=area.address, keep=area, answer=False) as rig:
        first = rig.send(FLUSH, 0, 0)
        rig.driver.kick()
        rig.wait_event()
        second = rig.send(FLUSH, 0, 0)
        rig.driver.kick()
        rig.wait_event()
        rig.stop()
        rig.queue.complete(second, 1)
        rig.queue.settle()
        assert view[HEADER.size + 16 * first] == 1
        assert view[HEADER.size + 16 * second] == 0
    view.release()
