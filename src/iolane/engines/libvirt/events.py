"""What happens to domains, as libvirt and QEMU's monitor tell it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import msgspec


class DomainEventKind(StrEnum):
    """virDomainEventType in libvirt's order, then what is told of devices, then QEMU's own."""

    DEFINED = "defined"
    UNDEFINED = "undefined"
    STARTED = "started"
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    STOPPED = "stopped"
    SHUTDOWN = "shutdown"
    PMSUSPENDED = "pmsuspended"
    CRASHED = "crashed"
    DEVICE_ADDED = "device-added"
    DEVICE_REMOVED = "device-removed"
    DEVICE_REMOVAL_FAILED = "device-removal-failed"
    MONITOR = "monitor"
    LOST = "lost"
    """The connection to libvirt is gone."""


LIFECYCLE = tuple(DomainEventKind)[: tuple(DomainEventKind).index(DomainEventKind.DEVICE_ADDED)]
"""By virDomainEventType's numbers."""


class DomainEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened."""

    kind: DomainEventKind
    domain: str
    """Its name; empty where all are meant."""
    time: float
    """Seconds since the epoch."""
    device: str = ""
    """The alias, or QEMU's id."""
    name: str = ""
    """QEMU's name of a monitor event."""
    data: dict[str, Any] = {}
    """What QEMU says with it."""
    detail: int = 0
    """libvirt's number for the cause of a lifecycle event (virDomainEvent*DetailType)."""


Listener = Callable[[DomainEvent], None]


class Watch:
    """Keeps what happens while it is entered, for whoever waits for something."""

    def __init__(self, subscribe: Callable[[Listener], Callable[[], None]], domain: str) -> None:
        self._subscribe = subscribe
        self._domain = domain
        self._events: list[DomainEvent] = []
        self._changed = threading.Condition()
        self._end: Callable[[], None] | None = None

    def __enter__(self) -> Self:
        self._end = self._subscribe(self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._end is not None:
            self._end()

    @property
    def events(self) -> list[DomainEvent]:
        """What has happened so far."""
        with self._changed:
            return list(self._events)

    def wait(self, wanted: Callable[[DomainEvent], bool], timeout: float) -> DomainEvent | None:
        """The first event that is wanted, of those that came since this was entered; None: not in time, or
        the connection was lost."""
        deadline = time.monotonic() + timeout
        looked = 0
        with self._changed:
            while True:
                for event in self._events[looked:]:
                    if wanted(event):
                        return event
                    if event.kind is DomainEventKind.LOST:
                        return None
                looked = len(self._events)
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)

    def _take(self, event: DomainEvent) -> None:
        if event.domain not in (self._domain, ""):
            return
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()
