"""What serving a device over a Unix socket is, whatever the protocol: one client after another."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from iolane.carriers.listener import Listener
from iolane.errors import IolaneError
from iolane.model.device import Device
from iolane.model.observers import Observers
from iolane.model.workers import Workers

_log = logging.getLogger("iolane.carriers")

EVENTS_KEPT = 64


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


class Counts(Protocol):
    """What a connection counts, and a server adds up."""

    def add(self, other: Self) -> None: ...


S = TypeVar("S", bound=Counts)
C = TypeVar("C", bound="Served")


class Served(Protocol):
    """One client while it is there."""

    @property
    def negotiated(self) -> bool: ...
    @property
    def ended_by(self) -> str: ...
    def run(self) -> None: ...
    def stop(self) -> None: ...


class SocketServer(ABC, Generic[C, S]):
    """Serves a device at `path`: one client at a time, each on the server's one thread, the next after it.

    Args:
        served: attached to `workers` by `start`, detached by `stop`.
        path: of the Unix socket.
        workers: threads for the device's tasks and timers; without them tasks run in the handler and time
            stands still.
        mode: of the socket's file, who may connect.
    """

    protocol: str
    """The protocol's name, for logs and the thread's name."""

    def __init__(
        self, served: Device, path: str | os.PathLike[str], *, workers: Workers | None, mode: int
    ) -> None:
        self.path = Path(path)
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self.on_event: Observers[Event] = Observers()
        self._served = served
        self._workers = workers
        self._mode = mode
        self._ended = self._no_counts()
        self._changed = threading.Condition()
        self._connection: C | None = None
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False

    # What a protocol supplies.

    @abstractmethod
    def _no_counts(self) -> S:
        """Counters at zero."""

    @abstractmethod
    def _counts_of(self, connection: C) -> S:
        """What a connection has counted."""

    @abstractmethod
    def _connect(self, accepted: socket.socket) -> C:
        """Make a connection of a socket, which it closes at its end."""

    def _prepare(self) -> None:
        """Called by `start` before the device is attached."""

    def _attached(self) -> None:
        """Called by `start` once the device is attached, before anybody can be served."""

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
            self._prepare()
            if self._workers is not None:
                self._served.attach(self._workers)
            self._attached()
        except BaseException:
            listener.close()
            raise
        self._stopping = False
        self._listener = listener
        name = f"{self.protocol} {self.path.name}"
        self._thread = threading.Thread(target=self._serve, args=(listener,), name=name, daemon=True)
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
            self._served.detach()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

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
    def statistics(self) -> S:
        """Counts of all connections, the present one included."""
        with self._changed:
            total = self._no_counts()
            total.add(self._ended)
            if self._connection is not None:
                total.add(self._counts_of(self._connection))
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

    def _greet(self) -> None:
        self._tell(EventKind.CONNECTED, "a client connected")

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
            connection = self._connect(accepted)
            with self._changed:
                if self._stopping:
                    return
                self._connection = connection
            try:
                connection.run()
            finally:
                with self._changed:
                    self._ended.add(self._counts_of(connection))
                    self._connection = None
                    self._changed.notify_all()
                if connection.negotiated:
                    self._tell(EventKind.DISCONNECTED, connection.ended_by)
