"""A block device whose queue compiled code serves: what Python does of it, pauses, sizes, states."""

from __future__ import annotations

import os
import resource
import select
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.devices.virtio.block import Block
from iolane.devices.virtio.block.features import BlockFeature
from iolane.memory.signals import Signaller
from iolane.model.virtio import Feature, RingRejection, Status, Virtqueue
from iolane.model.virtio.compiled_ring import CompiledRing, UnreachableRing, Wires
from iolane.model.virtio.features import BASE_FEATURES, mask
from iolane.model.workers import Workers
from iolane.testing.drivers.virtio import DriverMemory, DriverRing, Used
from iolane.uapi.virtio import BlockRequest, BlockStatus

START = 0x10_0000
BYTES = 1 << 20
SECTORS = 128
READY = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
DEVICE = mask((BlockFeature.FLUSH, BlockFeature.CONFIG_WCE))


class Disk:
    """The device, its guest's memory, and the guest's driver of queue 0."""

    def __init__(self, image: Path, workers: Workers) -> None:
        self.device = Block(image, serial="compiled")
        self.device.attach(workers)
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, BYTES)
        self.device.dma.enabled = True
        self.device.dma.map(START, BYTES, fd=self.fd)
        self.kick, self.call = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
        self.queue = self.device.queues[0]
        region = self.device.dma.host_regions()[0]
        view = memoryview(region.keep)
        self.heap = DriverMemory(view, START)
        self.driver = DriverRing(self.heap, 16, lambda: os.eventfd_write(self.kick, 1))
        self.rings: list[CompiledRing] = []
        assert self.device.accept_features(BASE_FEATURES & ~mask((Feature.EVENT_IDX,)) | DEVICE)
        self.device.status = READY

    def _make(self, queue: Virtqueue, last: int, used: int | None) -> CompiledRing:
        path = self.device.compiled_path(queue)
        self.rings.append(
            CompiledRing(
                self.device, queue, last, used, path, Wires(self.kick, self.call, Signaller().signal)
            )
        )
        return self.rings[-1]

    def start(self, base: int = 0) -> None:
        with self.device.lock:
            queue, driver = self.queue, self.driver
            queue.size = driver.size
            queue.descriptors, queue.available, queue.used = (
                driver.descriptors,
                driver.available,
                driver.used,
            )
            queue.make_ring = self._make
            queue.start(base)
            self.rings[-1].start()

    def stop(self) -> int:
        with self.device.lock:
            return self.queue.stop()

    def send(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> None:
        self.driver.send([struct.pack("<IIQ", kind, 0, sector), data], [room, 1])

    def wait(self) -> Used:
        self.driver.kick()
        while not (found := self.driver.collect()):
            ready, _, _ = select.select([self.call], [], [], 10)
            assert ready, f"no answer; {self.device.statistics()}"
            os.eventfd_read(self.call)
        (used,) = found
        return used

    def ask(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> bytes:
        self.send(kind, sector, data, room)
        return self.wait().data

    def count(self, name: str) -> int:
        return int(self.device.statistics().get(f"requests0.{name}", 0))

    def close(self) -> None:
        self.stop()
        self.device.detach()
        self.device.close()
        for fd in (self.fd, self.kick, self.call):
            os.close(fd)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(SECTORS * 512))
    return path


@pytest.fixture
def disk(image: Path) -> Iterator[Disk]:
    with Workers(1) as workers:
        disk = Disk(image, workers)
        disk.start()
        yield disk
        disk.close()


def test_compiled_code_and_python_serve_one_queue(disk: Disk, image: Path) -> None:
    data = os.urandom(1024)
    assert disk.ask(BlockRequest.OUT, 2, data) == b"\0"
    assert disk.ask(BlockRequest.FLUSH) == b"\0"
    assert disk.ask(BlockRequest.IN, 2, room=1024) == data + b"\0"
    assert disk.ask(BlockRequest.GET_ID, room=20) == b"compiled".ljust(20, b"\0") + b"\0"
    assert disk.ask(BlockRequest.IN, SECTORS, room=512)[-1:] in (b"", bytes([BlockStatus.IOERR]))
    assert image.read_bytes()[1024:2048] == data
    assert disk.count("slow") == 3
    assert disk.count("chains") == 5


def test_counts_survive_the_ring(disk: Disk) -> None:
    disk.ask(BlockRequest.IN, 0, room=512)
    disk.ask(BlockRequest.FLUSH)
    with disk.device.quiesced():
        before = [disk.count(name) for name in ("chains", "bytes_read", "bytes_written", "kicks")]
    assert disk.stop() == 2
    assert [disk.count(name) for name in ("chains", "bytes_read", "bytes_written", "kicks")] == before
    disk.start(2)
    disk.ask(BlockRequest.IN, 0, room=512)
    assert disk.count("chains") == 3


def test_a_pause_holds_requests_back(disk: Disk) -> None:
    for _ in range(3):
        with disk.device.quiesced():
            disk.send(BlockRequest.IN, 0, room=512)
            disk.driver.kick()
            assert disk.driver.collect() == []
        disk.wait()


def test_an_idle_ring_keeps_its_thread_in_a_pause(disk: Disk) -> None:
    """Nobody waits for a thread to end, or for one to begin."""
    disk.ask(BlockRequest.IN, 0, room=512)
    before = set(threading.enumerate())
    for _ in range(20):
        while not asleep(disk):
            pass
        with disk.device.quiesced():
            assert set(threading.enumerate()) == before
        disk.ask(BlockRequest.IN, 0, room=512)
    assert set(threading.enumerate()) == before


def asleep(disk: Disk) -> bool:
    """Whether the ring's thread sleeps."""
    return any(
        Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rsplit(")", 1)[1].split()[0] == "S"
        for thread in threading.enumerate()
        if thread.name == f"{disk.device.name} {disk.queue.name}"
    )


def test_a_closed_ring_that_lingers_keeps_its_thread_until_it_leaves(disk: Disk) -> None:
    ring = disk.rings[-1]
    disk.ask(BlockRequest.IN, 0, room=512)
    while not asleep(disk):
        pass
    ring.lingers = True
    disk.stop()
    assert asleep(disk)
    ring.leave()
    ring.join()
    assert not asleep(disk)
    disk.start(1)
    assert disk.ask(BlockRequest.IN, 0, room=512)[-1:] == b"\0"


def test_a_state_has_what_was_given_back_while_pausing(disk: Disk) -> None:
    """A flush that ends while the device pauses is in the used ring before the state is taken."""
    disk.send(BlockRequest.FLUSH)
    disk.driver.kick()
    while not disk.count("slow"):
        pass
    with disk.device.quiesced():
        saved = disk.queue.save()
    assert (saved.last_available, saved.used_index, saved.in_flight) == (1, 1, [])
    assert len(disk.driver.collect()) == 1


def test_another_size(disk: Disk, image: Path) -> None:
    disk.ask(BlockRequest.IN, 0, room=512)
    os.truncate(image, 2 * SECTORS * 512)
    disk.device.resize()
    assert disk.device.config.CAPACITY == 2 * SECTORS
    slow = disk.count("slow")
    assert disk.ask(BlockRequest.IN, 2 * SECTORS - 1, room=512) == bytes(513)
    assert disk.count("slow") == slow
    os.truncate(image, 512)
    disk.device.resize()
    assert disk.ask(BlockRequest.IN, 0, room=512)[-1] == 0
    disk.send(BlockRequest.IN, 1, room=512)
    assert disk.wait().written == 0


def test_write_through(disk: Disk) -> None:
    """With WRITEBACK 0 each write is flushed: by Python."""
    disk.device.write_config(0x20, b"\0")
    assert disk.ask(BlockRequest.OUT, 0, bytes(512)) == b"\0"
    assert disk.count("slow") == 1
    disk.device.write_config(0x20, b"\1")
    assert disk.ask(BlockRequest.OUT, 0, bytes(512)) == b"\0"
    assert disk.count("slow") == 1


def test_a_write_that_the_host_refuses(disk: Disk) -> None:
    """The driver gets an error, the queue goes on. (A file size limit stands for a full disk.)"""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        assert disk.ask(BlockRequest.OUT, 64, bytes(512)) == bytes([BlockStatus.IOERR])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert disk.device.counters["errors_EFBIG"] == 1
    assert disk.ask(BlockRequest.OUT, 64, bytes(512)) == b"\0"


def test_a_broken_ring_needs_a_reset(disk: Disk) -> None:
    disk.driver.offer(99)
    disk.driver.kick()
    while disk.queue.rejection is None:
        pass
    assert disk.queue.rejection is RingRejection.HEAD_OUT_OF_RANGE
    assert Status.NEEDS_RESET in disk.device.status
    disk.device.reset()
    assert disk.queue.rejection is None


def test_memory_without_an_address_here(disk: Disk) -> None:
    """The readable ring reaches it."""
    disk.stop()
    disk.device.dma.map(0x1000_0000, 4096, buffer=bytearray(4096))
    disk.queue.descriptors = 0x1000_0000
    with pytest.raises(UnreachableRing):
        disk._make(disk.queue, 0, 0)
