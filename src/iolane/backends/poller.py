"""One thread that waits for file descriptors and for moments, and tells who asked."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

_log = logging.getLogger("iolane.backends.poller")

READABLE = select.EPOLLIN | select.EPOLLRDHUP
WRITABLE = select.EPOLLOUT
HUNG_UP = select.EPOLLRDHUP
"""The peer has left, whatever it sent before was read or not."""


class Poller:
    """Calls back once per `arm` when a descriptor is ready, and once per `call_at` when its moment comes.

    Callbacks run on the poller's thread, which starts with the first request; they take the lock they need.
    """

    def __init__(self, name: str = "iolane-poller") -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._lock = threading.Lock()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._moment: tuple[float, Callable[[], None]] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._started = False
        self._closing = False

    def arm(self, fd: int, events: int, callback: Callable[[], None]) -> None:
        """Call `callback` once when `fd` is ready for `events` or in error; replaces what was armed."""
        with self._lock:
            if self._closing:
                return
            known = fd in self._callbacks
            self._callbacks[fd] = callback
            flags = events | select.EPOLLONESHOT
            if known:
                self._epoll.modify(fd, flags)
            else:
                self._epoll.register(fd, flags)
            self._start()

    def forget(self, fd: int) -> None:
        """No more calls for `fd`; to be called before it is closed."""
        with self._lock:
            if self._callbacks.pop(fd, None) is not None and not self._closing:
                self._epoll.unregister(fd)

    def call_at(self, moment: float, callback: Callable[[], None]) -> None:
        """Call `callback` once when time.monotonic() reaches `moment`; replaces the moment before."""
        with self._lock:
            if self._closing:
                return
            self._moment = (moment, callback)
            self._start()
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the thread, without waiting: a callback may be waiting for a lock that the caller holds."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._callbacks.clear()
            self._moment = None
            if self._started:
                os.eventfd_write(self._wake, 1)  # under the lock: the thread, which may be awake, closes it
            else:
                self._release()

    def join(self) -> None:
        """Wait until the thread has ended; not for a callback, nor under a lock that a callback takes."""
        if self._started:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        self.join()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._thread.start()

    def _release(self) -> None:
        self._epoll.close()
        os.close(self._wake)

    def _run(self) -> None:
        while True:
            for fd, _ in self._epoll.poll(self._timeout()):
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                else:
                    self._call(self._callbacks.get(fd))
            if self._closing:
                with self._lock:
                    self._release()
                return
            self._call(self._due())

    def _timeout(self) -> float | None:
        with self._lock:
            return None if self._moment is None else max(0.0, self._moment[0] - time.monotonic())

    def _due(self) -> Callable[[], None] | None:
        with self._lock:
            if self._moment is None or time.monotonic() < self._moment[0]:
                return None
            callback, self._moment = self._moment[1], None
            return callback

    def _call(self, callback: Callable[[], None] | None) -> None:
        if callback is None:
            return
        try:
            callback()
        except Exception:
            _log.exception("a poller's callback failed")
