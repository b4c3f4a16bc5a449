"""A queue on the compiled data plane: `CompiledQueue` serves it in a thread, what it leaves goes the
readable way.

The chains that the compiled code does not do itself are fetched by `SplitRing`, handled by the device under
its lock and given back through the compiled ring, so that one writer alone touches the used ring. Packets
that it leaves stay where they are: in the device's turn `pop` and `unpop` work on the compiled ring as on
the readable one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Mapping
from typing import NamedTuple

from iolane.memory.ring import (
    BAD_INDEX,
    CHAIN,
    HEAD_IN_FLIGHT,
    TURN,
    CompiledPath,
    CompiledQueue,
    RegionTable,
)
from iolane.model.dma import DmaFault, DmaSpace, HostRegion
from iolane.model.virtio.chain import Chain
from iolane.model.virtio.device import VirtioDevice
from iolane.model.virtio.features import Feature
from iolane.model.virtio.queue import Virtqueue, make_split_ring
from iolane.model.virtio.rejection import BrokenRing, RingRejection
from iolane.model.virtio.split_ring import SplitRing

_EVENTS = {
    BAD_INDEX: RingRejection.AVAILABLE_OVERRUN,
    HEAD_IN_FLIGHT: RingRejection.HEAD_IN_FLIGHT,
}


PATIENCE = 0.05
"""Seconds for which a ring's thread may end by itself; a peer that lets it wait gets no more."""


class Wires(NamedTuple):
    """What the carrier gives a ring: descriptors that stay its own, and traces in shared memory.

    Attributes:
        kick, call: eventfds, pipes or sockets; -1 for none.
        signal: signals a descriptor without waiting, whatever a peer does with it.
        log: (address, bytes, guest address of the used ring) of a dirty log.
        log_signal: eventfd that is signalled when the log was marked; -1 for none.
        inflight: address of the queue's part of an in-flight area, or 0.
        keep: what keeps the two mapped.
    """

    kick: int
    call: int
    signal: Callable[[int], None]
    log: tuple[int, int, int] | None = None
    log_signal: int = -1
    inflight: int = 0
    keep: object = None


class CompiledRing:
    """The rings of a running queue, behind the `Ring` protocol. Called under the device's lock.

    Raises:
        BrokenRing: the rings can't be where the driver says.
        UnreachableRing: they are in memory that has no address here; the readable ring reaches it.
    """

    def __init__(
        self,
        device: VirtioDevice,
        queue: Virtqueue,
        last_available: int,
        used_index: int | None,
        path: CompiledPath | None,
        wires: Wires,
    ) -> None:
        self._device = device
        self._queue = queue
        self._oracle = make_split_ring(SplitRing, queue, last_available, used_index)
        self._handed: int | None = None
        self._turn = self._looked = False
        self._adopted: set[int] = set()
        self._thread: threading.Thread | None = None
        self._leaving: threading.Thread | None = None
        self.lingers = False
        """Whoever closes it has `leave` called later: the end of a thread takes a processor for a while."""
        self._running = False
        self._held = False
        """The thread sleeps and leaves the queue alone: as good as ended, and nobody had to wait."""
        self._counted = False
        self._wires = wires
        regions = device.dma.host_regions()
        descriptors, available, used = (
            host_address(regions, start, length, write=write) for start, length, write in _areas(queue)
        )
        self._engine = CompiledQueue(
            size=queue.size,
            descriptors=descriptors,
            available=available,
            used=used,
            regions=region_table(device.dma, regions),
            event_idx=device.negotiated(Feature.EVENT_IDX),
            indirect=device.negotiated(Feature.INDIRECT_DESC),
            last_available=last_available,
            used_index=self._oracle.used_index,
            kick=wires.kick,
            call=wires.call,
            path=path,
            log=wires.log,
            log_signal=wires.log_signal,
            inflight=wires.inflight,
            keep=wires.keep,
        )

    # The thread.

    def start(self) -> None:
        """Serve the queue in a thread of its own, until `pause`; a broken one is not served."""
        if self._queue.rejection is not None:
            return
        self._engine.rearm()
        self._engine.by_turns = self._queue.repeats
        self._running = True
        name = f"{self._device.name} {self._queue.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Serve what is available, in the caller's thread; instead of `start`."""
        self._engine.by_turns = self._queue.repeats
        self._engine.drain(self._slow)

    def _run(self) -> None:
        changed = self._device.changed
        try:
            self._engine.run(self._slow)
        finally:
            with changed:
                self._running = False
                changed.notify_all()

    def _slow(self, event: int, head: int) -> bool:
        """What the compiled code leaves to Python. False: the queue is of no use any more."""
        queue = self._queue
        with self._device.lock:
            if queue.ring is not self or queue.rejection is not None:
                return False
            with queue.batch():
                if event == TURN:
                    self._do_turn()
                elif event == CHAIN:
                    self._handed = head
                    while (chain := queue.pop()) is not None:
                        self._device.handle(queue, chain)
                else:
                    raise BrokenRing(_EVENTS[event] if event in _EVENTS else self._lost())
            return queue.rejection is None

    def _do_turn(self) -> None:
        """One packet, the readable way; an error in the device's code is no reason to try again at once."""
        more, self._turn = False, True
        try:
            more = self._device.on_turn(self._queue)
        finally:
            self._turn = False
            self._engine.by_turns = self._queue.repeats
            if not more:
                self._engine.wait(self._oracle.available_seen)

    def _lost(self) -> RingRejection:
        """Guest memory was cut away: the rings', or what chains name."""
        oracle = self._oracle
        try:
            for start, length, _ in _areas(self._queue):
                oracle.dma.read(start, length)
        except DmaFault:
            return RingRejection.RING_UNREACHABLE
        return RingRejection.BUFFER_LOST

    def pause(self) -> None:
        """Return when the thread does nothing any more; the device's lock is released meanwhile."""
        thread = self._thread
        if thread is None or self._held:
            return
        if thread is not threading.current_thread() and self._engine.hold():
            self._held = True
            return
        self._engine.stop()
        changed = self._device.changed
        owed = set[int]()
        while self._running and thread is not threading.current_thread():
            if not changed.wait(PATIENCE):
                owed.add(self._engine.let_go())
        for fd in owed - {-1}:
            self._wires.signal(fd)

    def resume(self) -> None:
        """Go on after `pause`."""
        if self._held:
            self._let_go()
        elif self._thread is not None and not self._running:
            self.start()

    def _let_go(self) -> None:
        if self._queue.rejection is not None:
            return
        self._held = False
        self._engine.by_turns = self._queue.repeats
        self._engine.release()

    def close(self) -> None:
        """No task holds a chain any more: show the driver what was given back since the thread ended."""
        self.pause()
        self._leaving, self._thread = self._thread, None
        self._settle()
        if not self._counted:
            self._counted = True
            self._hand_over_counts()
        if not self.lingers:
            self.leave()

    def leave(self) -> None:
        """After `close`: the thread ends by and by, and with it goes what it kept: mappings, descriptors."""
        if self._held:
            self._engine.leave()

    def join(self) -> None:
        """After `leave`, without the device's lock: the thread has ended."""
        if self._leaving is not None and self._leaving is not threading.current_thread():
            self._leaving.join()

    def _settle(self) -> None:
        """Show the driver what was given back while the thread does not run."""
        interrupt, marked = self._engine.settle()
        if marked and self._wires.log_signal >= 0:
            self._wires.signal(self._wires.log_signal)
        if interrupt:
            self._wires.signal(self._wires.call)

    def _hand_over_counts(self) -> None:
        """The queue outlives this ring, and so do its counts."""
        queue, engine = self._queue, self._engine
        queue.kicks += engine.kicks
        queue.chains += engine.requests
        queue.bytes_read += engine.bytes_read
        queue.bytes_written += engine.bytes_written
        queue.interrupts += engine.interrupts
        queue.suppressed += engine.suppressed

    def rewire(self, kick: int, call: int) -> None:
        """Use other descriptors from now on. While paused."""
        self._wires = self._wires._replace(kick=kick, call=call)
        self._engine.set_wires(kick, call)

    def relog(self, log: tuple[int, int, int] | None, log_signal: int, keep: object) -> None:
        """Mark writes elsewhere from now on, see `Wires`. While paused."""
        self._wires = self._wires._replace(log=log, log_signal=log_signal, keep=keep)
        self._engine.set_log(log, log_signal, keep)

    def give_up(self) -> None:
        """The queue is broken: the thread ends."""
        self._engine.stop()

    # The `Ring` protocol.

    @property
    def last_available(self) -> int:
        """Index of the next chain to take."""
        return self._engine.last_available

    @property
    def used_index(self) -> int:
        """Index of the next used element. While paused all that was given back is in the used ring."""
        if self._held or not self._running:
            self._settle()
        return self._engine.used_index

    def pop(self, in_flight: Container[int] = ()) -> Chain | None:
        """The chain that the compiled code hands over, or in a turn the next one, if it is doing that."""
        if self._turn:
            return self._pop_in_turn(in_flight)
        head, self._handed = self._handed, None
        if head is None:
            return None
        try:
            return self._oracle.fetch(head)
        except BrokenRing:
            if self._is_latest(head):
                self._engine.untake(head)  # whoever serves the ring next finds it wrong, too
            raise

    def _is_latest(self, head: int) -> bool:
        """Whether the chain was taken last: one whose transfer failed is handed over again later."""
        oracle = self._oracle
        if head >= oracle.size:
            return False
        place = oracle.available + 4 + 2 * ((self._engine.last_available - 1) % oracle.size)
        try:
            return oracle.dma.load16(place) == head
        except DmaFault:
            return False

    def _pop_in_turn(self, in_flight: Container[int]) -> Chain | None:
        self._oracle.go_on(self._engine.last_available)
        chain = self._oracle.pop(in_flight)
        if chain is not None:
            self._engine.take(chain.head)
        return chain

    def unpop(self, head: int) -> None:
        """In a turn: the chain that was taken last is available again."""
        self._engine.untake(head)

    def fetch(self, head: int) -> Chain:
        """A chain that an earlier life of this device had taken, to be done again."""
        if head not in self._adopted:
            self._engine.adopt(head)
            self._adopted.add(head)
        return self._oracle.fetch(head)

    def push(self, head: int, written: int) -> None:
        """Give a chain back; the compiled code writes the used ring, and interrupts."""
        self._adopted.discard(head)
        self._engine.complete(head, min(written, 0xFFFF_FFFF))

    def publish(self) -> None:
        """The compiled code does it."""

    def needs_interrupt(self) -> bool:
        """Never: the compiled code decides, and interrupts."""
        return False

    def enable_kicks(self) -> bool:
        """The compiled code asks for kicks, and sees what became available meanwhile.

        A queue that starts with more than there can be is broken from the start; later the thread finds that.
        """
        if not self._looked:
            self._looked = True
            self._oracle.pending()
        return False

    def disable_kicks(self) -> None:
        """The compiled code does it."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Counts of the compiled code; chains that Python did are the queue's."""
        engine = self._engine
        return {
            "kicks": engine.kicks,
            "chains": engine.requests,
            "bytes_read": engine.bytes_read,
            "bytes_written": engine.bytes_written,
            "interrupts": engine.interrupts,
            "interrupts_suppressed": engine.suppressed,
            "batches": engine.batches,
            "slow": engine.slow,
        }


class UnreachableRing(BrokenRing):
    """The rings are not in one piece of mapped memory; the readable ring may still reach them."""

    def __init__(self) -> None:
        super().__init__(RingRejection.RING_UNREACHABLE)


def _areas(queue: Virtqueue) -> list[tuple[int, int, bool]]:
    """(guest address, bytes, whether the device writes) of a queue's descriptors and rings."""
    return [
        (queue.descriptors, 16 * queue.size, False),
        (queue.available, 6 + 2 * queue.size, False),
        (queue.used, 6 + 8 * queue.size, True),
    ]


def host_address(regions: list[HostRegion], address: int, length: int, *, write: bool = False) -> int:
    """Where a range of guest memory lies in this process. Raises UnreachableRing."""
    for region in regions:
        if region.start <= address and address + length <= region.start + region.size:
            if write and not region.writable:
                break
            return region.address + address - region.start
    raise UnreachableRing()


def region_table(dma: DmaSpace, regions: list[HostRegion]) -> RegionTable:
    """Guest memory for compiled code; what must stay mapped stays mapped with it."""
    rows = [(item.start, item.size, item.address, item.writable, item.broken_address) for item in regions]
    return RegionTable(rows, keep=[item.keep for item in regions])
