"""A machine's events for those who ask: each gets all from then on, in a queue that is bounded."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import msgspec

from iolane.carriers.control import EventKind, MachineEvent

KEPT = 1024
"""Events that wait for their reader; the oldest of more are dropped, and counted in the next."""
REMEMBERED = 32
"""The latest, for reports."""


class MachineEvents:
    """Where a machine's events go. Whoever tells of one never waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._takers: list[Callable[[MachineEvent | None], None]] = []
        self._latest: deque[MachineEvent] = deque(maxlen=REMEMBERED)
        self._ended = False

    @property
    def latest(self) -> list[MachineEvent]:
        """The last ones."""
        return list(self._latest)

    def tell(self, kind: EventKind, text: str = "", *, device: str | None = None) -> None:
        """Something happened now."""
        self.pass_on(MachineEvent(kind=kind, time=time.time(), device=device, text=text))

    def pass_on(self, event: MachineEvent) -> None:
        """The same with an event that there is. Behind the machine's end there are no more."""
        with self._lock:
            if self._ended:
                return
            self._ended = event.kind is EventKind.ENDED
            self._latest.append(event)
            for take in self._takers:
                take(event)
            if self._ended:
                for take in self._takers:
                    take(None)

    def begin(self) -> None:
        """The machine starts (again)."""
        with self._lock:
            self._ended = False

    def follow(self, take: Callable[[MachineEvent | None], None]) -> Callable[[], None]:
        """`take`, which must not wait, gets each event from now on, and None behind the last. Returns the
        call that ends it.
        """
        with self._lock:
            self._takers.append(take)
            if self._ended:
                take(None)

        def end() -> None:
            with self._lock:
                if take in self._takers:
                    self._takers.remove(take)

        return end


class EventQueue:
    """The events of a machine from now on: an iterator that ends with the machine, and a context manager."""

    def __init__(self, events: MachineEvents) -> None:
        self._waiting: deque[MachineEvent] = deque()
        self._changed = threading.Condition()
        self._over = False
        self._lost = 0
        self._end = events.follow(self._take)

    def get(self, timeout: float | None = None) -> MachineEvent | None:
        """The next event; None when the machine has ended, or none came within `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._over, timeout)
            if not self._waiting:
                return None
            lost, self._lost = self._lost, 0
            return msgspec.structs.replace(self._waiting.popleft(), lost=lost)

    def close(self) -> None:
        """No more."""
        self._end()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[MachineEvent]:
        while (event := self.get()) is not None:
            yield event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, event: MachineEvent | None) -> None:
        with self._changed:
            if event is None:
                self._over = True
            else:
                if len(self._waiting) >= KEPT:
                    self._waiting.popleft()
                    self._lost += 1
                self._waiting.append(event)
            self._changed.notify_all()
