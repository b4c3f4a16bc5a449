"""What serves rings: the seam between the carrier and its data planes."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from iolane.carriers.vhost_user.ring import TracedRing
from iolane.carriers.vhost_user.vring import Start, Vring
from iolane.memory.signals import take
from iolane.model.device import Device
from iolane.model.virtio import Virtqueue
from iolane.model.virtio.queue import make_split_ring

POLL_MS = 1
"""How often a ring without a kick descriptor is looked at."""


class DataPlane(Protocol):
    """Serves rings. Called from the connection's thread, without the device's lock: it may join threads.

    Starting sets the queue up (`queue.make_ring`, `queue.start`) and has every kick serviced from then on;
    what was available before is serviced without a kick. IolaneError: the device refuses.
    """

    def start(self, vring: Vring, start: Start) -> None: ...

    def stop(self, vring: Vring) -> int:
        """Return once what is in flight was given back and no thread touches the ring: the index to go on
        from.
        """

    def rewire(self, vring: Vring, change: Callable[[], None]) -> None:
        """Make `change`, which exchanges the kick or the call descriptor of a running ring and closes the
        earlier one, while no thread uses it.
        """

    def relog(self, vring: Vring, start: Start) -> None:
        """Have a running ring mark its writes as `start` says; in all else it is as the ring was started."""

    def let_go(self) -> None:
        """Give back what stopped rings still have: threads, guest memory."""

    def close(self) -> None:
        """Every ring is stopped: end what is left."""


class PythonPlane:
    """The readable data plane: one thread waits for all kicks of a connection, and has the device's logic
    take chains under the device's lock.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._watched: dict[int, Vring] = {}
        self._polled: set[Vring] = set()
        self._epoll: select.epoll | None = None
        self._wake = -1
        self._thread: threading.Thread | None = None
        self._closing = False

    def start(self, vring: Vring, start: Start) -> None:
        with self._device.lock:
            queue = vring.queue
            queue.size = vring.size
            queue.descriptors, queue.available, queue.used = start.descriptors, start.available, start.used
            queue.interrupt, queue.error = vring.call, vring.broke
            queue.make_ring = lambda queue, last, used: self._make_ring(queue, last, used, start)
            queue.start(start.last_available, start.used_index, start.in_flight)
            self._watch(vring)

    @staticmethod
    def _make_ring(queue: Virtqueue, last: int, used: int | None, start: Start) -> TracedRing:
        ring = make_split_ring(TracedRing, queue, last, used)
        ring.inflight = start.inflight
        ring.log, ring.log_address = start.log, start.log_address
        return ring

    def stop(self, vring: Vring) -> int:
        with self._device.lock:
            self._forget(vring)
            queue = vring.queue
            last = queue.stop() if queue.ring is not None else vring.base
            queue.reset()
            return last

    def rewire(self, vring: Vring, change: Callable[[], None]) -> None:
        with self._device.lock:
            self._forget(vring)
            change()
            self._watch(vring)
            vring.queue.service()

    def relog(self, vring: Vring, start: Start) -> None:
        with self._device.lock:
            ring = vring.queue.ring
            if isinstance(ring, TracedRing):
                ring.log, ring.log_address = start.log, start.log_address

    def let_go(self) -> None:
        """A stopped ring has nothing."""

    def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._closing = True
            os.eventfd_write(self._wake, 1)
            thread.join()
        if self._epoll is not None:
            self._epoll.close()
            os.close(self._wake)
            self._epoll = None

    # The thread.

    def _watch(self, vring: Vring) -> None:
        if self._epoll is None:
            self._open()
        assert self._epoll is not None
        if vring.kick is not None:
            self._watched[vring.kick] = vring
            self._epoll.register(vring.kick, select.EPOLLIN)
        else:
            self._polled.add(vring)
            os.eventfd_write(self._wake, 1)

    def _forget(self, vring: Vring) -> None:
        self._polled.discard(vring)
        if vring.kick is not None and self._watched.pop(vring.kick, None) is not None:
            assert self._epoll is not None
            with suppress(OSError):
                self._epoll.unregister(vring.kick)

    def _open(self) -> None:
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        name = f"kicks of {self._device.name}"
        self._thread = threading.Thread(target=self._run, args=(self._epoll,), name=name, daemon=True)
        self._thread.start()

    def _run(self, epoll: select.epoll) -> None:
        while not self._closing:
            timeout = POLL_MS / 1000 if self._polled else None
            for fd, events in epoll.poll(timeout):
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                else:
                    self._kicked(epoll, fd, events)
            if self._polled:
                with self._device.lock:
                    for vring in list(self._polled):
                        vring.queue.service()

    def _kicked(self, epoll: select.epoll, fd: int, events: int) -> None:
        """Service the ring whose kick this is now: while we waited it may have become another's."""
        with self._device.lock:
            vring = self._watched.get(fd)
            if vring is None:
                return
            try:
                take(fd)
            except BlockingIOError:
                return
            except OSError:
                events |= select.EPOLLHUP
            vring.queue.kick()
            if events & (select.EPOLLHUP | select.EPOLLERR):
                self._forget(vring)  # a pipe whose other end is gone would be ready for ever
