"""Devices for hostile rings: one on each data plane, over memory files with guard areas."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from iolane.backends.memory import MemoryBackend
from iolane.devices.virtio.block import Block
from iolane.memory.mapping import Mapping
from iolane.memory.signals import Signaller
from iolane.model.dma import Permission
from iolane.model.virtio import Feature, RingRejection, Status, VirtioDevice, Virtqueue
from iolane.model.virtio.compiled_ring import CompiledRing, UnreachableRing, Wires
from iolane.model.virtio.features import BASE_FEATURES, mask
from iolane.model.virtio.queue import split_ring
from iolane.model.virtio.split_ring import Ring
from iolane.testing.drivers.virtio_hostile import (
    GUARD,
    PAGE,
    PAGES,
    READ_ONLY,
    START,
    WRITE_ONLY,
    HostileMemory,
    HostileRing,
)

SECTORS = 16
READY = Status.DRIVER_OK | Status.FEATURES_OK | Status.DRIVER | Status.ACKNOWLEDGE
_GUARD_PAGE = bytes([GUARD]) * PAGE
_WITHOUT_EVENTS = BASE_FEATURES & ~mask((Feature.EVENT_IDX,))


class Outcome(NamedTuple):
    """What came of a ring.

    Attributes:
        memory: guest memory, without the used ring's flags of a broken queue, which wants no kicks.
        base: where whoever serves the ring next goes on.
    """

    rejection: RingRejection | None
    disk: bytes
    memory: bytes
    base: int | None


class RingVictim:
    """A device; each `run` is a life of one queue, from reset to the last chain.

    Args:
        device: on the readable data plane.
        index: of the queue.
    """

    def __init__(self, device: VirtioDevice, index: int = 0) -> None:
        self.fd = os.memfd_create("hostile")
        os.ftruncate(self.fd, HostileMemory.BYTES)
        self._mapping = Mapping(self.fd, HostileMemory.BYTES)
        self.memory = HostileMemory(memoryview(self._mapping))
        self.device = device
        dma = self.device.dma
        dma.map(START, PAGES * PAGE, fd=self.fd, offset=PAGE)
        dma.map(READ_ONLY, PAGE, fd=self.fd, offset=(PAGES + 1) * PAGE, permission=Permission.READ)
        dma.map(WRITE_ONLY, PAGE, fd=self.fd, offset=(PAGES + 2) * PAGE, permission=Permission.WRITE)
        self.queue = self.device.queues[index]
        self.queue.error = self._error
        self.errors = self.config_interrupts = 0
        self.device.config_interrupt = self._config_interrupt

    def features(self, ring: HostileRing) -> int:
        """What is negotiated."""
        return _WITHOUT_EVENTS if ring.indirect else _WITHOUT_EVENTS & ~mask((Feature.INDIRECT_DESC,))

    def disk(self) -> bytes:
        """What came of it beside memory."""
        raise NotImplementedError

    def _error(self) -> None:
        self.errors += 1

    def _config_interrupt(self) -> None:
        self.config_interrupts += 1

    def run(self, ring: HostileRing) -> Outcome:
        """Start the queue on a ring that is in `memory`."""
        device, queue = self.device, self.queue
        before = self.config_interrupts, self.errors
        with device.lock:
            device.dma.enabled = True
            device.reset()
            assert device.accept_features(self.features(ring))
            device.status = READY
            device.dma.enabled = ring.dma_enabled
            queue.size = ring.size
            queue.descriptors, queue.available, queue.used = ring.descriptors, ring.available, ring.used
            self.serve(ring)
            rejection = queue.rejection
        happened = self.config_interrupts - before[0], self.errors - before[1]
        assert happened == ((0, 0) if rejection is None else (1, 1)), "the driver is told once"
        assert (Status.NEEDS_RESET in device.status) == (rejection is not None)
        assert device.error_count == 0, "the device's own code failed"
        self.check_guards()
        base = None if queue.ring is None else queue.ring.last_available
        return Outcome(rejection, self.disk(), self._comparable(ring, rejection), base)

    def serve(self, ring: HostileRing) -> None:
        queue = self.queue
        if ring.name != "twice":
            queue.start()
            queue.kick()
            return
        self.device.pause()
        queue.start()
        with queue.batch():
            while queue.pop():
                pass
        self.device.resume()

    def check_guards(self) -> None:
        """No byte outside of what the device may write has changed."""
        for area in self.memory.forbidden:
            assert bytes(area) == _GUARD_PAGE, "a byte outside of what may be written has changed"

    def _comparable(self, ring: HostileRing, rejection: RingRejection | None) -> bytes:
        content = bytes(self.memory.inside)
        at = ring.used - START
        if rejection is None or not 0 <= at < len(content):
            return content
        return content[:at] + bytes(2) + content[at + 2 :]

    def close(self) -> None:
        self.device.close()
        os.close(self.fd)


class Victim(RingVictim):
    """A block device."""

    device: Block

    def __init__(self) -> None:
        super().__init__(self.make_device())

    def make_device(self) -> Block:
        return Block(backend=MemoryBackend(SECTORS * 512))

    def disk(self) -> bytes:
        content = bytearray(SECTORS * 512)
        self.device.backend.readv(0, [memoryview(content)])
        return bytes(content)


class CompiledVictim(Victim):
    """The same on the compiled data plane, in the caller's thread or in one of its own."""

    def __init__(self, image: Path, *, thread: bool = False) -> None:
        image.write_bytes(bytes(SECTORS * 512))
        self._image = image
        self._thread = thread
        super().__init__()
        self._held = False
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        self.compiled = 0
        self._handle: Callable[..., None] = self.device.handle

    def make_device(self) -> Block:
        return Block(self._image)

    def disk(self) -> bytes:
        return self._image.read_bytes()

    def set_disk(self, content: bytes) -> None:
        """Write the image in place: it stays mapped."""
        with self._image.open("rb+") as file:
            file.write(content)

    def serve(self, ring: HostileRing) -> None:
        queue = self.queue
        self._held = ring.name == "twice"
        handle: Callable[..., None] = self._hold if self._held else self._handle
        self.device.handle = handle  # type: ignore[method-assign]
        queue.make_ring = self._make
        queue.start()
        compiled = queue.ring
        if not isinstance(compiled, CompiledRing) or queue.rejection is not None:
            queue.kick()
        elif self._thread:
            self._serve_in_thread(compiled)
        else:
            compiled.drain()
        if isinstance(compiled, CompiledRing):
            self.compiled += 1

    def _serve_in_thread(self, ring: CompiledRing) -> None:
        """Until nothing is left to take, or the queue is broken."""
        ring.start()
        os.eventfd_write(self.kick, 1)
        queue, changed = self.queue, self.device.changed
        while queue.rejection is None:
            with self.device.quiesced():
                if ring.last_available == self._available():
                    break
            changed.wait(0.0001)
        ring.pause()

    def _available(self) -> int:
        at = self.queue.available + 2 - START
        return int.from_bytes(self.memory.inside[at : at + 2], "little")

    def _hold(self, *_: object) -> None:
        """Keep the chain."""

    def _make(self, queue: Virtqueue, last: int, used: int | None) -> Ring:
        path = None if self._held else self.device.compiled_path(queue)
        try:
            return CompiledRing(
                self.device, queue, last, used, path, Wires(self.kick, -1, Signaller().signal)
            )
        except UnreachableRing:
            return split_ring(queue, last, used)

    def close(self) -> None:
        super().close()
        os.close(self.kick)
