"""A compiled queue over a memfd, and its driver."""

from __future__ import annotations

import os
import select
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from iolane.memory.mapping import Mapping
from iolane.memory.ring import BlockPath, CompiledPath, CompiledQueue, RegionTable
from iolane.testing.drivers.virtio import DriverMemory, DriverRing, Used

START = 0x1000_0000
BYTES = 4 << 20
IN, OUT, FLUSH = 0, 1, 4
MAPPED, CACHED, DIRECT = 0, 1, 2
WAIT = 10.0


def path_of(fd: int, size: int, mode: int, *, read_only: bool = False) -> BlockPath:
    """The image behind a descriptor."""
    if mode != MAPPED:
        return BlockPath(fd, size, mode, read_only)
    image = Mapping(fd, size, writable=False)
    return BlockPath(fd, size, mode, read_only, image.address, image.broken_address, image)


class RingRig:
    """The queue runs in a thread from `start` on; what it leaves to Python is in `events`.

    Args:
        index: where both rings' indexes begin.
        answer: whether chains that Python gets are given back at once, with 1 byte written.
        options: of the queue.
    """

    def __init__(
        self,
        path: CompiledPath | None,
        *,
        size: int = 16,
        index: int = 0,
        event_idx: bool = False,
        indirect: bool = True,
        answer: bool = True,
        regions: list[tuple[int, int, int, bool, int]] | None = None,
        **options: Any,
    ) -> None:
        self.fd = os.memfd_create("rig")
        os.ftruncate(self.fd, BYTES)
        self.mapping = Mapping(self.fd, BYTES)
        self.heap = DriverMemory(memoryview(self.mapping), START)
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)
        self.driver = DriverRing(
            self.heap, size, lambda: os.eventfd_write(self.kick, 1), event_idx=event_idx, indirect=indirect
        )
        self._begin_at(index)
        self.events: list[tuple[int, int]] = []
        self.event = threading.Event()
        self.answer = answer
        self.slow: Callable[[int, int], bool] = self._slow
        plain = (START, BYTES, self.mapping.address, True, self.mapping.broken_address)
        self.queue = CompiledQueue(
            size=size,
            descriptors=self._host(self.driver.descriptors),
            available=self._host(self.driver.available),
            used=self._host(self.driver.used),
            regions=RegionTable([plain] if regions is None else regions, keep=self.mapping),
            event_idx=event_idx,
            indirect=indirect,
            last_available=index,
            used_index=index,
            kick=self.kick,
            call=self.call,
            path=path,
            **options,
        )
        self.thread: threading.Thread | None = None

    def _begin_at(self, index: int) -> None:
        driver = self.driver
        driver.available_index = driver.used_seen = driver._announced = index
        for ring in (driver.available, driver.used):
            self.heap.write(ring + 2, index.to_bytes(2, "little"))
        if driver.event_idx:
            driver.ask_interrupt(index)

    def _host(self, address: int) -> int:
        return self.mapping.address + address - START

    def _slow(self, event: int, head: int) -> bool:
        self.events.append((event, head))
        if event == 0 and self.answer:
            self.queue.complete(head, 1)
        self.event.set()
        return event == 0

    # Life.

    def start(self) -> None:
        self.queue.rearm()
        self.thread = threading.Thread(target=lambda: self.queue.run(self.slow))
        self.thread.start()

    def stop(self) -> None:
        self.queue.stop()
        if self.thread is not None:
            self.thread.join(WAIT)
            assert not self.thread.is_alive(), "the queue does not stop"
            self.thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for fd in (self.kick, self.call, self.fd):
            os.close(fd)

    # Requests.

    def send(self, kind: int, sector: int, data: bytes | int, *, indirect: bool = False, cut: int = 0) -> int:
        """Make a request available, its data in one piece or cut in two; `data`: what to write, or how much
        to read.
        """
        header = self.heap.allocate(16)
        self.heap.write(header, struct.pack("<IIQ", kind, 0, sector))
        length = data if isinstance(data, int) else len(data)
        place = self.heap.allocate(length, 512)
        pieces = [(place, cut), (place + cut, length - cut)] if cut else [(place, length)] * (length > 0)
        status = self.heap.allocate(1)
        self.heap.write(status, b"\xee")
        if isinstance(data, int):
            head = self.driver.add([(header, 16)], [*pieces, (status, 1)], indirect=indirect)
        else:
            self.heap.write(place, data)
            head = self.driver.add([(header, 16), *pieces], [(status, 1)], indirect=indirect)
        return head

    def wait(self, count: int) -> list[Used]:
        """Kick, and wait for so many chains."""
        self.driver.kick()
        found = self.driver.collect()
        while len(found) < count:
            ready, _, _ = select.select([self.call], [], [], WAIT)
            assert ready, f"{len(found)} of {count} chains came back"
            os.eventfd_read(self.call)
            found += self.driver.collect()
        assert len(found) == count
        return found

    def wait_event(self) -> tuple[int, int]:
        """Wait until Python was asked for something."""
        assert self.event.wait(WAIT)
        self.event.clear()
        return self.events[-1]
