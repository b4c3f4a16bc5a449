"""A virtqueue: what the driver set of it, its rings while it runs, and its way to the carrier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

from iolane.errors import IolaneError
from iolane.model.counters import Counters
from iolane.model.dma import DmaFault, DmaSpace
from iolane.model.virtio.chain import Chain
from iolane.model.virtio.features import Feature
from iolane.model.virtio.rejection import BrokenRing, RingRejection, buffer_rejection
from iolane.model.virtio.split_ring import Ring, SplitRing
from iolane.model.virtio.state import QueueState

R = TypeVar("R", bound=SplitRing)


class QueueOwner(Protocol):
    """What a queue knows of its device."""

    dma: DmaSpace
    counters: Counters
    paused: bool

    @property
    def chain_limit(self) -> int: ...
    def negotiated(self, feature: int) -> bool: ...
    def quiesced(self) -> AbstractContextManager[Any]: ...
    def report_error(self, where: str, error: Exception) -> None: ...
    def fail(self) -> None: ...
    def on_kick(self, queue: Virtqueue) -> None: ...
    def on_queue_start(self, queue: Virtqueue) -> None: ...
    def on_queue_stop(self, queue: Virtqueue) -> None: ...


def nobody() -> None:
    """The carrier's side of a queue that has none."""


class Virtqueue:
    """One queue of a device. Everything is called under the device's lock.

    Attributes:
        size, descriptors, available, used: set by the driver (or the carrier) before `start`.
        enabled: the driver wants the queue to run once the driver is ready (virtio-pci's queue_enable).
        ring: the rings while the queue runs, else None.
        rejection: why the queue is broken, else None. It stays so until `reset`.
        interrupt: supplied by the carrier; tells the driver of used chains.
        error: supplied by the carrier; called when the queue breaks (vhost-user: VRING_ERR).
        make_ring: makes the rings at `start`; a carrier with a compiled data plane puts its own here.
        in_flight: chains taken and not given back, by head.
    """

    def __init__(self, device: QueueOwner, index: int, max_size: int, name: str) -> None:
        self.device = device
        self.index = index
        self.max_size = max_size
        self.name = name
        self.interrupt: Callable[[], None] = nobody
        self.error: Callable[[], None] = nobody
        self.make_ring: Callable[[Virtqueue, int, int | None], Ring] = split_ring
        self.ring: Ring | None = None
        self.rejection: RingRejection | None = None
        self.in_flight: dict[int, Chain] = {}
        self.kicks = self.chains = self.bytes_read = self.bytes_written = 0
        self.interrupts = self.suppressed = self.rejections = 0
        self._again: list[int] = []
        """Heads that were in flight elsewhere and are to be done again."""
        self._repeated: set[int] = set()
        """Those of them that were taken."""
        self._loaded = False
        self._depth = 0
        self._given_back = False
        self._clear()

    def _clear(self) -> None:
        self.size = self.max_size
        self.descriptors = self.available = self.used = 0
        self.enabled = False

    @property
    def running(self) -> bool:
        """Whether chains are taken and given back."""
        return self.ring is not None and self.rejection is None

    # Life.

    def start(
        self, last_available: int = 0, used_index: int | None = None, in_flight: Iterable[int] = ()
    ) -> None:
        """Run, from `last_available` on; what is available already is serviced at once.

        Args:
            used_index: by default what the used ring says.
            in_flight: heads that were taken by another life of this device and are to be done first.

        Raises:
            IolaneError: the device can't serve the queue (its image is in use elsewhere, say).
        """
        self.stop()
        if self.rejection is not None:
            raise IolaneError(f"queue {self.name} is broken: {self.rejection}", remedy="reset the device")
        self.device.on_queue_start(self)
        self._again = list(in_flight)
        with self.batch():
            self.ring = self.make_ring(self, last_available, used_index)
            self.ring.enable_kicks()
        if self.rejection is None:
            self.service()

    def stop(self) -> int:
        """Finish what is in flight, and take no more. Returns the index to go on from."""
        if self.ring is None:
            return 0
        with self.device.quiesced():
            last = self._close()
        return last

    def _close(self) -> int:
        ring, self.ring = self.ring, None
        if ring is None:
            return 0
        ring.close()
        self.in_flight.clear()
        self._again.clear()
        self._repeated.clear()
        self.device.on_queue_stop(self)
        return ring.last_available

    def reset(self) -> None:
        """As made: not running, not broken, nothing set (virtio 1.3, 2.6.1). Nothing is in flight."""
        self._close()
        self.rejection = None
        self._clear()

    # The driver.

    def kick(self) -> None:
        """The driver says that chains may be available."""
        self.kicks += 1
        self.service()

    def service(self) -> None:
        """Let the device look at the queue, if it may run now."""
        if not self.running or self.device.paused or not self.device.dma.enabled:
            return
        if self._loaded and not self.device.dma.maps:
            return  # a state was loaded, the memory that it is about is still to come
        self._loaded = False
        with self.batch():
            self.device.on_kick(self)

    # The device's logic.

    def pop(self) -> Chain | None:
        """Take the next chain. None: there is none, and the driver was asked to kick for the next."""
        ring = self.ring
        if ring is None or self.rejection is not None:
            return None
        if self._again:
            self._repeated.add(self._again[0])
            return self._take(ring.fetch(self._again.pop(0)))
        chain = ring.pop(self.in_flight)
        if chain is None and ring.enable_kicks():
            chain = ring.pop(self.in_flight)
        return None if chain is None else self._take(chain)

    @property
    def repeats(self) -> bool:
        """Whether chains of an earlier life come first."""
        return bool(self._again)

    def _take(self, chain: Chain) -> Chain:
        if chain.head in self.in_flight:
            raise BrokenRing(RingRejection.HEAD_IN_FLIGHT)
        self.in_flight[chain.head] = chain
        self.chains += 1
        self.bytes_read += chain.readable_length
        return chain

    def unpop(self, chains: Sequence[Chain]) -> None:
        """The latest `chains` that were taken, in order, are available again: there is no use for them yet.

        The driver kicks for the next chain behind them.
        """
        for chain in reversed(chains):
            if self.in_flight.get(chain.head) is not chain:
                continue
            del self.in_flight[chain.head]
            self.chains -= 1
            self.bytes_read -= chain.readable_length
            if chain.head in self._repeated:
                self._repeated.discard(chain.head)
                self._again.insert(0, chain.head)
            else:
                assert self.ring is not None
                self.ring.unpop(chain.head)

    def push(self, chain: Chain, written: int = 0) -> None:
        """Give a chain back, `written` bytes of it written. Of a queue that was reset since: do nothing."""
        if self.in_flight.get(chain.head) is not chain:
            return
        del self.in_flight[chain.head]
        self._repeated.discard(chain.head)
        with self.batch():
            if self.ring is not None and self.rejection is None:
                self.ring.push(chain.head, written)
                self.bytes_written += written
                self._given_back = True

    @contextmanager
    def batch(self) -> Iterator[None]:
        """What is given back inside becomes visible at the end, with one interrupt; a wrong ring breaks the
        queue, and an exception of the device's code the device.
        """
        self._depth += 1
        try:
            yield
        except (BrokenRing, DmaFault) as error:
            self.reject(error)
        except Exception as error:
            self.device.report_error(f"queue {self.name}", error)
            self.device.fail()
        finally:
            self._depth -= 1
            if self._given_back and not self._depth:
                self._given_back = False
                self._flush()

    def _flush(self) -> None:
        """Of a broken queue, too: chains before the wrong one are done, and are not done again by whoever
        goes on behind them.
        """
        ring = self.ring
        if ring is None:
            return
        try:
            ring.publish()
            wanted = ring.needs_interrupt()
        except BrokenRing as error:
            if self.rejection is None:
                self.reject(error)
            return
        if wanted:
            self.interrupts += 1
            self.interrupt()
        else:
            self.suppressed += 1

    def reject(self, error: BrokenRing | DmaFault) -> None:
        """The driver broke the rules: the queue is of no use until a reset (virtio 1.3, 2.1.2)."""
        reason = error.reason if isinstance(error, BrokenRing) else buffer_rejection(error)
        self.rejections += 1
        self.device.counters.add(f"rejected_{reason.name.lower()}")
        if self.rejection is None:
            self.rejection = reason
            self.error()
            self.device.fail()

    # State.

    def save(self) -> QueueState:
        """Everything, as data."""
        ring = self.ring
        return QueueState(
            size=self.size,
            descriptors=self.descriptors,
            available=self.available,
            used=self.used,
            enabled=self.enabled,
            running=ring is not None,
            rejection=None if self.rejection is None else self.rejection.name,
            last_available=0 if ring is None else ring.last_available,
            used_index=0 if ring is None else ring.used_index,
            in_flight=[*self.in_flight, *self._again],
        )

    def load(self, state: QueueState) -> None:
        """Become what was saved. The rings are not looked at before the next `service`.

        Raises:
            BrokenRing: no queue can be in this state.
        """
        self.reset()
        self.size, self.enabled = state.size, state.enabled
        self.descriptors, self.available, self.used = state.descriptors, state.available, state.used
        if state.rejection is not None:
            self.rejection = RingRejection.__members__.get(state.rejection, RingRejection.MALFORMED_REQUEST)
        if state.running:
            self.ring = self.make_ring(self, state.last_available, state.used_index)
            self._again = list(state.in_flight)
            self._loaded = True

    def statistics(self) -> dict[str, int | float | str]:
        """Counts, by the names that `iolane devices` shows."""
        counts = {
            "kicks": self.kicks,
            "chains": self.chains,
            "in_flight": len(self.in_flight),
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "interrupts": self.interrupts,
            "interrupts_suppressed": self.suppressed,
            "rejections": self.rejections,
        }
        for key, count in self.ring.counts.items() if self.ring is not None else ():
            counts[key] = counts.get(key, 0) + count
        shown: dict[str, int | float | str] = {f"{self.name}.{key}": count for key, count in counts.items()}
        if self.rejection is not None:
            shown[f"{self.name}.broken"] = str(self.rejection)
        return shown


def split_ring(queue: Virtqueue, last_available: int, used_index: int | None) -> SplitRing:
    """The rings of a queue on the readable data plane."""
    return make_split_ring(SplitRing, queue, last_available, used_index)


def make_split_ring(kind: type[R], queue: Virtqueue, last_available: int, used_index: int | None) -> R:
    """The same for a carrier's own kind of split ring."""
    device = queue.device
    return kind(
        device.dma,
        queue.size,
        queue.descriptors,
        queue.available,
        queue.used,
        event_idx=device.negotiated(Feature.EVENT_IDX),
        indirect=device.negotiated(Feature.INDIRECT_DESC),
        chain_limit=max(queue.max_size, device.chain_limit),
        last_available=last_available,
        used_index=used_index,
    )
