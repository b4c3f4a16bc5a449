"""A device served to one client after another."""

from __future__ import annotations

import logging
import os
import resource
import threading
import time
from collections import deque
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from iolane.carriers.vfio_user.connection import Connection
from iolane.carriers.vfio_user.listener import Listener
from iolane.carriers.vfio_user.rejection import Statistics
from iolane.errors import IolaneError
from iolane.model.interrupts import InterruptIndex, TableOwner
from iolane.model.observers import Observers
from iolane.model.pci import PciDevice
from iolane.model.workers import Workers

_log = logging.getLogger("iolane.vfio_user")

EVENTS_KEPT = 64
FDS_BESIDE_VECTORS = 256
"""Descriptors that a process needs beside one eventfd a vector: sockets, memory files, back ends."""


class EventKind(StrEnum):
    """What happened to a server."""

    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    FAILED = "failed"
    WARNING = "warning"


class Event(NamedTuple):
    """Something that whoever runs the server wants to know."""

    kind: EventKind
    time: float
    text: str


class VfioUserServer:
    """Serves `device` at `path`: one client at a time, each on the server's one thread, the next after it.

    The device's state survives a client; its memory and eventfds do not ("Client Disconnection").

    Args:
        device: attached to `workers` by `start`, detached by `stop`.
        path: of the Unix socket. QEMU connects once, when the device is realized: start the server before.
        workers: threads for the device's tasks and timers; without them tasks run in the handler and
            time stands still. mode: of the socket's file, who may connect.
    """

    def __init__(
        self,
        device: PciDevice,
        path: str | os.PathLike[str],
        *,
        workers: Workers | None = None,
        mode: int = 0o600,
    ) -> None:
        self.device = device
        self.path = Path(path)
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self.on_event: Observers[Event] = Observers()
        self._workers = workers
        self._mode = mode
        self._ended = Statistics()
        self._changed = threading.Condition()
        self._connection: Connection | None = None
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False

    # Starting and stopping.

    def start(self) -> None:
        """Listen, and serve in a thread. Clients can connect when this returns.

        Raises:
            SocketError: the path is in use, no socket, not writable, too long; one line says which.
        """
        if self._thread is not None:
            raise IolaneError(f"the server at {self.path} runs already")
        listener = Listener(self.path, mode=self._mode)
        try:
            self._allow_descriptors()
            if self._workers is not None:
                self.device.attach(self._workers)
        except BaseException:
            listener.close()
            raise
        with self.device.lock:
            self.device.interrupts.table_owner = TableOwner.CARRIER
        self._stopping = False
        self._listener = listener
        self._thread = threading.Thread(
            target=self._serve, args=(listener,), name=f"vfio-user {self.path.name}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Throw the client out, stop listening, join the thread. A second call does nothing."""
        with self._changed:
            thread, self._thread = self._thread, None
            if thread is None:
                return
            self._stopping = True
            if self._listener is not None:
                self._listener.stop()
            if self._connection is not None:
                self._connection.stop()
        if thread is not threading.current_thread():
            thread.join()
        if self._workers is not None:
            self.device.detach()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _allow_descriptors(self) -> None:
        """Each vector is an eventfd of the client; the usual soft limit of 1024 is below MSI-X's 2048."""
        vectors = sum(self.device.interrupts.group(index).count for index in InterruptIndex)
        wanted = vectors + FDS_BESIDE_VECTORS
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return
        reachable = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
        if reachable < wanted:
            self._tell(
                EventKind.WARNING,
                f"{vectors} vectors may need {wanted} descriptors, the limit is {hard} (ulimit -Hn {wanted})",
            )

    # What others look at.

    @property
    def running(self) -> bool:
        """Between `start` and `stop`, unless the thread died."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def connected(self) -> bool:
        """A client has negotiated and is there."""
        connection = self._connection
        return connection is not None and connection.negotiated

    @property
    def statistics(self) -> Statistics:
        """Counts of all connections, the present one included."""
        with self._changed:
            total = Statistics()
            total.add(self._ended)
            if self._connection is not None:
                total.add(self._connection.statistics)
            return total

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Wait until no client is connected, or being cleaned up after. False when the time is over."""
        with self._changed:
            return self._changed.wait_for(lambda: self._connection is None, timeout)

    def _tell(self, kind: EventKind, text: str) -> None:
        event = Event(kind, time.time(), text)
        self.events.append(event)
        _log.info("%s: %s: %s", self.path, kind, text)
        self.on_event.notify(event)

    # The thread.

    def _serve(self, listener: Listener) -> None:
        try:
            while not self._stopping:
                try:
                    self._serve_one(listener)
                except Exception as error:
                    # What no handler expected ends one connection, never the server.
                    _log.exception("%s: a connection failed", self.path)
                    self._tell(EventKind.FAILED, f"{type(error).__name__}: {error}")
                    self._breathe()
        finally:
            listener.close()

    def _breathe(self) -> None:
        """No descriptor may be left to accept a client with: wait for better times rather than spin."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, 0.1)

    def _serve_one(self, listener: Listener) -> None:
        accepted = listener.accept()
        if accepted is None:
            return
        with accepted:
            connection = Connection(accepted, self.device, on_negotiated=self._greet)
            with self._changed:
                if self._stopping:
                    return
                self._connection = connection
            try:
                connection.run()
            finally:
                with self._changed:
                    self._ended.add(connection.statistics)
                    self._connection = None
                    self._changed.notify_all()
                if connection.negotiated:
                    self._tell(EventKind.DISCONNECTED, connection.ended_by)

    def _greet(self) -> None:
        self._tell(EventKind.CONNECTED, "a client connected")
