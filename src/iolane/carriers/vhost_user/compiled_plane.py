"""The compiled data plane: a thread without the GIL for each ring whose device has something for compiled
code to do.
"""

from __future__ import annotations

from collections.abc import Callable

from iolane.carriers.vhost_user.plane import PythonPlane
from iolane.carriers.vhost_user.vring import Start, Vring
from iolane.memory.ring import CompiledPath
from iolane.model.virtio import VirtioDevice, Virtqueue
from iolane.model.virtio.compiled_ring import CompiledRing, UnreachableRing, Wires
from iolane.model.virtio.split_ring import Ring


class CompiledPlane(PythonPlane):
    """Serves by compiled code what it can, and the rest as `PythonPlane` does.

    Rings that the front end wants polled, that lie in memory without an address here, or whose device
    offers compiled code nothing, are served the readable way.
    """

    def __init__(self, device: VirtioDevice) -> None:
        super().__init__(device)
        self._virtio = device
        self._lingering: list[CompiledRing] = []
        """Stopped, with a thread that sleeps: who waits for the answer does not wait for its end."""

    def start(self, vring: Vring, start: Start) -> None:
        self.let_go()
        with self._virtio.lock:
            queue = vring.queue
            queue.size = vring.size
            queue.descriptors, queue.available, queue.used = start.descriptors, start.available, start.used
            queue.interrupt, queue.error = vring.call, lambda: _break(vring)
            queue.make_ring = lambda queue, last, used: self._choose_ring(vring, last, used, start)
            queue.start(start.last_available, start.used_index, start.in_flight)
            self._watch(vring)

    def _choose_ring(self, vring: Vring, last: int, used: int | None, start: Start) -> Ring:
        queue = vring.queue
        path = None if vring.kick is None else self._virtio.compiled_path(queue)
        if path is not None:
            try:
                return self._compile(queue, last, used, path, vring, start)
            except UnreachableRing:
                self._virtio.counters.add("rings_not_compiled")
        return self._make_ring(queue, last, used, start)

    def _compile(
        self, queue: Virtqueue, last: int, used: int | None, path: CompiledPath, vring: Vring, start: Start
    ) -> CompiledRing:
        kick, call, signal = _fd(vring.kick), _fd(vring.call_fd), vring.signaller.signal
        inflight = 0 if start.inflight is None else start.inflight.address
        wires = Wires(kick, call, signal, *_log(start), inflight, _keep(start))
        return CompiledRing(self._virtio, queue, last, used, path, wires)

    def stop(self, vring: Vring) -> int:
        ring = vring.queue.ring
        if isinstance(ring, CompiledRing):
            ring.lingers = True
            self._lingering.append(ring)
        return super().stop(vring)

    def let_go(self) -> None:
        lingering, self._lingering = self._lingering, []
        for ring in lingering:
            ring.leave()
        for ring in lingering:
            ring.join()

    def close(self) -> None:
        self.let_go()
        super().close()

    def rewire(self, vring: Vring, change: Callable[[], None]) -> None:
        with self._virtio.lock:
            ring = vring.queue.ring
            if not isinstance(ring, CompiledRing):
                super().rewire(vring, change)
                return
            ring.pause()
            change()
            ring.rewire(_fd(vring.kick), _fd(vring.call_fd))
            ring.resume()

    def relog(self, vring: Vring, start: Start) -> None:
        with self._virtio.lock:
            ring = vring.queue.ring
            if not isinstance(ring, CompiledRing):
                super().relog(vring, start)
                return
            ring.pause()
            ring.relog(*_log(start), _keep(start))
            ring.resume()

    def _watch(self, vring: Vring) -> None:
        ring = vring.queue.ring
        if isinstance(ring, CompiledRing):
            ring.start()
        else:
            super()._watch(vring)


def _break(vring: Vring) -> None:
    vring.broke()
    if isinstance(vring.queue.ring, CompiledRing):
        vring.queue.ring.give_up()


def _log(start: Start) -> tuple[tuple[int, int, int] | None, int]:
    """Where writes are marked, and who is told."""
    if start.log is None:
        return None, -1
    log = start.log
    return (log.mapping.address + log.offset, log.size, start.log_address), log.signal.fd


def _keep(start: Start) -> list[object]:
    """What must stay mapped."""
    log = [] if start.log is None else [memoryview(start.log.mapping)]
    return [*log, start.inflight]


def _fd(fd: int | None) -> int:
    return -1 if fd is None else fd
