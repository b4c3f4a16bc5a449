"""Hostile rings against the readable data plane: each named rejection, counted; nothing else changes."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from iolane.backends.memory import MemoryBackend
from iolane.devices.virtio.block import Block
from iolane.model.virtio import BrokenRing, Feature, RingRejection, Status, Virtqueue
from iolane.model.virtio.features import BASE_FEATURES, mask
from iolane.testing.drivers.virtio_hostile import PAGE, START, HostileDriver, HostileMemory, HostileRing

pytestmark = pytest.mark.hostile

SECTORS = 16
ROUNDS = 120


class Victim:
    """A block device on the readable data plane, whose requests end inside `handle` or are held."""

    def __init__(self, memory: HostileMemory) -> None:
        self.backend = MemoryBackend(SECTORS * 512)
        self.device = Block(backend=self.backend)
        memory.map(self.device.dma)
        self.interrupts = 0
        self.config_interrupts = 0
        self.errors = 0
        self.queue = self.device.queues[0]
        self.queue.interrupt = self._interrupt
        self.queue.error = self._error
        self.device.config_interrupt = self._config_interrupt

    def _interrupt(self) -> None:
        self.interrupts += 1

    def _error(self) -> None:
        self.errors += 1

    def _config_interrupt(self) -> None:
        self.config_interrupts += 1

    def run(self, ring: HostileRing) -> RingRejection | None:
        """One life of the queue, from reset to the kick."""
        device, queue = self.device, self.queue
        with device.lock:
            device.dma.enabled = True
            device.reset()
            features = BASE_FEATURES & ~mask((Feature.EVENT_IDX,))
            if not ring.indirect:
                features &= ~mask((Feature.INDIRECT_DESC,))
            assert device.accept_features(features)
            device.status = Status.DRIVER_OK | Status.FEATURES_OK | Status.DRIVER | Status.ACKNOWLEDGE
            device.dma.enabled = ring.dma_enabled
            queue.size = ring.size
            queue.descriptors, queue.available, queue.used = ring.descriptors, ring.available, ring.used
            if ring.name == "twice":
                device.pause()  # chains pile up behind a task that does not end
                hold(queue)
                device.resume()
            else:
                queue.start()
                queue.kick()
            return queue.rejection


def hold(queue: Virtqueue) -> None:
    """Take everything and give nothing back."""
    queue.start()
    with queue.batch():
        while queue.pop():
            pass


def test_every_rejection_has_its_name_and_nothing_else_happens() -> None:
    memory = HostileMemory(memoryview(bytearray(HostileMemory.BYTES)))
    driver = HostileDriver(memory, 1, capacity=SECTORS)
    victim = Victim(memory)
    found: Counter[RingRejection] = Counter()
    for number in range(ROUNDS):
        for name in driver.names:
            ring = driver.make(name)
            before = victim.config_interrupts, victim.errors
            rejection = victim.run(ring)
            if name != "random":
                assert rejection is ring.expected, (name, number)
            if rejection is not None:
                found[rejection] += 1
                assert Status.NEEDS_RESET in victim.device.status
                assert (victim.config_interrupts, victim.errors) == (before[0] + 1, before[1] + 1)
            memory.check()
    assert victim.device.error_count == 0
    never = {RingRejection.BUFFER_LOST}  # needs a file, below
    assert {reason for reason in RingRejection if found[reason] < 100} == never
    for reason in found:
        assert victim.device.counters[f"rejected_{reason.name.lower()}"] >= found[reason]


def test_a_truncated_memory_file_breaks_the_queue_only() -> None:
    """The guest's owner cuts the file under the rings, or under the buffers."""
    for keep, reason in ((2, RingRejection.BUFFER_LOST), (0, RingRejection.RING_UNREACHABLE)):
        fd = os.memfd_create("hostile")
        os.ftruncate(fd, 8 * PAGE)
        device = Block(backend=MemoryBackend(8192))
        try:
            device.dma.map(START, 8 * PAGE, fd=fd)
            scratch = HostileMemory(memoryview(bytearray(HostileMemory.BYTES)))
            ring = HostileDriver(scratch, 3).make("no status")
            os.pwrite(fd, scratch.inside[: 2 * PAGE], 0)
            # One chain whose header lies in the part that goes away.
            at = ring.descriptors - START
            header = (START + 4 * PAGE).to_bytes(8, "little") + (16).to_bytes(4, "little") + b"\1\0\1\0"
            status = (START + 5 * PAGE).to_bytes(8, "little") + (1).to_bytes(4, "little") + b"\2\0\0\0"
            os.pwrite(fd, header + status, at)
            os.pwrite(fd, (0).to_bytes(2, "little"), ring.available - START + 4)
            os.pwrite(fd, (1).to_bytes(2, "little"), ring.available - START + 2)
            assert device.accept_features(BASE_FEATURES)
            queue = device.queues[0]
            queue.size = ring.size
            queue.descriptors, queue.available, queue.used = ring.descriptors, ring.available, ring.used
            os.ftruncate(fd, keep * PAGE)
            queue.start()
            assert queue.rejection is reason
            assert device.error_count == 0
        finally:
            device.close()
            os.close(fd)


def test_a_broken_queue_stays_broken_until_reset() -> None:
    """2.1.2: the driver resets; nothing is consumed before that."""
    memory = HostileMemory(memoryview(bytearray(HostileMemory.BYTES)))
    driver = HostileDriver(memory, 2, capacity=SECTORS)
    victim = Victim(memory)
    assert victim.run(driver.make("head")) is RingRejection.HEAD_OUT_OF_RANGE
    queue = victim.queue
    kicked = queue.chains
    queue.kick()
    assert queue.chains == kicked
    assert queue.pop() is None
    with pytest.raises(Exception, match="broken"):
        queue.start()
    assert victim.run(driver.make("good")) is None
    assert str(BrokenRing(RingRejection.LOOP)) == RingRejection.LOOP.value
