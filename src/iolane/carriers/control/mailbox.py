"""Messages on their way from somebody who must not wait to a reader on a socket, who may be slow."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Sized
from typing import Generic, TypeVar

T = TypeVar("T", bound=Sized)


class Mailbox(Generic[T]):
    """Holds what has not been read yet.

    Args:
        limit: how much; more is dropped and counted, until there is room again.
        by_size: whether `limit` counts what the messages hold (bytes of pieces), not how many there are.
    """

    def __init__(self, limit: int, *, by_size: bool = False) -> None:
        self._limit = limit
        self._by_size = by_size
        self._waiting: deque[T] = deque()
        self._held = 0
        self._lock = threading.Lock()
        self._lost = 0
        self._ended = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def put(self, message: T) -> None:
        """Never waits."""
        size = len(message) if self._by_size else 1
        with self._lock:
            if self._wake < 0:
                return
            if self._held + size > self._limit:
                self._lost += size
                return
            self._waiting.append(message)
            self._held += size
            if len(self._waiting) == 1:
                os.eventfd_write(self._wake, 1)

    def end(self) -> None:
        """Nothing follows: the reader is told when it has read what is there."""
        with self._lock:
            if self._wake >= 0:
                self._ended = True
                os.eventfd_write(self._wake, 1)

    @property
    def ended(self) -> bool:
        """Whether nothing is there and nothing will follow."""
        with self._lock:
            return self._ended and not self._waiting

    def fileno(self) -> int:
        """Readable when there is something to take."""
        return self._wake

    def wait(self, connection: socket.socket) -> bool:
        """Until there are messages, or nothing follows; False when the peer closed its side, or spoke."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(connection, select.POLLIN | select.POLLRDHUP)
        return all(descriptor == self._wake for descriptor, _ in poll.poll())

    def take(self) -> tuple[list[T], int]:
        """All that is there, and how much was dropped behind it."""
        with self._lock:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            if self._ended:
                os.eventfd_write(self._wake, 1)
            messages, lost = list(self._waiting), self._lost
            self._waiting.clear()
            self._held = 0
            if messages:
                self._lost = 0
            return messages, lost if messages else 0

    def close(self) -> None:
        """What comes from now on is dropped."""
        with self._lock:
            os.close(self._wake)
            self._wake = -1
