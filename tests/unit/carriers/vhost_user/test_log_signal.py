"""SET_LOG_FD: the front end is told that the log was marked, by a disk's rings on both data planes."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.carriers.vhost_user import FrontEnd, SharedMemory, VhostUserServer
from iolane.carriers.vhost_user.choice import PLANES
from iolane.devices.virtio.block import Block
from iolane.devices.virtio.block.request import HEADER
from iolane.model.virtio.compiled_ring import CompiledRing
from iolane.model.workers import Workers
from iolane.testing.drivers.virtio import DriverMemory, DriverRing
from iolane.uapi.virtio import BlockRequest
from tests.unit.carriers.vhost_user.sample import MEMORY, WANTED

LOG_ALL = 1 << 26
PAGE = 4096
LOG_SIZE = (0x1_0000_0000 + MEMORY) // PAGE // 8
WAIT_MS = 10_000


class Disk:
    """A disk's driver and front end, its log and what signals it."""

    def __init__(self, server: VhostUserServer, device: Block, front: FrontEnd, memory: SharedMemory) -> None:
        self.server, self.device, self.front = server, device, front
        self.heap = DriverMemory(memory.view, memory.guest_address)
        self.ring = DriverRing(self.heap, 64, front.kicker(0))
        self.fds: list[int] = []

    def start(self) -> None:
        self.front.client.set_features(self.front.features | LOG_ALL)
        self.front.start(0, self.ring)

    def add_log(self) -> int:
        log = os.memfd_create("log")
        self.fds.append(log)
        os.ftruncate(log, LOG_SIZE)
        self.front.client.set_log_base(log, LOG_SIZE)
        return log

    def add_signal(self) -> int:
        signal = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.fds.append(signal)
        self.front.client.set_log_fd(signal)
        return signal

    def read(self, *, kick: bool = True) -> set[int]:
        """Have a block read. Returns the pages that this writes."""
        place = self.heap.allocate(PAGE, PAGE)
        header, status = self.heap.allocate(16), self.heap.allocate(1)
        self.heap.write(header, HEADER.pack(BlockRequest.IN, 0, 0))
        self.ring.add([(header, 16)], [(place, PAGE), (status, 1)])
        if kick:
            self.ring.kick()
        return {place // PAGE, status // PAGE, (self.ring.used + 2) // PAGE}

    def wait_used(self, count: int) -> None:
        while int.from_bytes(self.heap.read(self.ring.used + 2, 2), "little") != count:
            assert self.front.rings[0].wait_call(WAIT_MS / 1000)


@pytest.fixture(params=sorted(PLANES))
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(1 << 16))
    with Workers(2) as workers, SharedMemory(MEMORY) as memory:
        device = Block(image)
        with VhostUserServer(device, tmp_path / "s", workers=workers, plane=PLANES[request.param]) as server:
            with FrontEnd(server.path, [memory], rings=1, wanted=WANTED) as front:
                disk = Disk(server, device, front, memory)
                disk.start()
                assert isinstance(device.queues[0].ring, CompiledRing) == (request.param == "compiled")
                yield disk
            assert server.wait_idle(30)
        device.close()
    for fd in disk.fds:
        os.close(fd)


def wait(signal: int) -> int:
    """How often it was signalled, once it was."""
    poll = select.poll()
    poll.register(signal, select.POLLIN)
    assert poll.poll(WAIT_MS), "nobody signalled the log"
    return os.eventfd_read(signal)


def marked(log: int) -> set[int]:
    content = os.pread(log, LOG_SIZE, 0)
    return {8 * at + bit for at, byte in enumerate(content) if byte for bit in range(8) if byte >> bit & 1}


def is_silent(signal: int) -> bool:
    try:
        os.eventfd_read(signal)
    except BlockingIOError:
        return True
    return False


def test_marks_are_told(disk: Disk) -> None:
    """Whoever waits for the signal alone learns of every page."""
    log, signal = disk.add_log(), disk.add_signal()
    for _ in range(20):
        expected = disk.read()
        while not expected <= marked(log):
            wait(signal)
        disk.wait_used(disk.ring.available_index)


def test_another_log_and_another_signal(disk: Disk) -> None:
    """Either may be exchanged under a running ring, and come first."""
    signal = disk.add_signal()
    disk.read()
    disk.wait_used(1)
    assert is_silent(signal), "there is no log yet"
    for _ in range(2):
        log = disk.add_log()
        expected = disk.read()
        while not expected <= marked(log):
            wait(signal)
        disk.wait_used(disk.ring.available_index)
    disk.front.client.get_features()
    later = disk.add_signal()
    while not is_silent(signal):
        pass
    expected = disk.read()
    while not expected <= marked(log):
        wait(later)
    disk.front.stop(0)
    assert is_silent(signal)


def test_nothing_is_told_where_nothing_is_marked(disk: Disk) -> None:
    disk.add_log()
    disk.front.client.set_features(disk.front.features)
    signal = disk.add_signal()
    disk.read()
    disk.wait_used(1)
    disk.front.stop(0)
    assert is_silent(signal)


def test_a_signal_that_is_full_holds_nothing_up(disk: Disk) -> None:
    """The front end never reads it: eventfds hold 2**64 - 2."""
    disk.add_log()
    signal = disk.add_signal()
    disk.front.stop(0)
    while not is_silent(signal):
        pass
    os.eventfd_write(signal, 2**64 - 2)
    disk.front.start(0, disk.ring)
    for _ in range(3):
        disk.read()
    disk.wait_used(3)
