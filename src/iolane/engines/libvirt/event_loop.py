"""libvirt's event loop in a thread. libvirt has one loop a process, which must be there before the first
connection is opened; the thread runs while connections are open.
"""

from __future__ import annotations

import threading
from typing import Any

from iolane.engines.libvirt.binding import libvirt


class EventLoop:
    """The loop of this process. Callbacks of all connections are called in its thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._thread: threading.Thread | None = None
        self._ending = False
        self._timer: int | None = None
        """Never fires by itself: making it due wakes the loop."""

    def enter(self) -> None:
        """One more user; the first one starts the thread."""
        binding = libvirt()
        with self._lock:
            if self._timer is None:
                binding.registerErrorHandler(_say_nothing, None)
                binding.virEventRegisterDefaultImpl()
                self._timer = binding.virEventAddTimeout(-1, _rest, None)
            self._users += 1
            if self._users == 1:
                self._ending = False
                self._thread = threading.Thread(
                    target=self._run, args=(binding,), name="libvirt events", daemon=True
                )
                self._thread.start()

    def leave(self) -> None:
        """One user less; with the last one the thread ends."""
        with self._lock:
            self._users -= 1
            if self._users or self._thread is None:
                return
            self._ending = True
            libvirt().virEventUpdateTimeout(self._timer, 0)
            self._thread.join()
            self._thread = None

    @property
    def inside(self) -> bool:
        """Whether the caller is called by the loop: it must not wait for events then."""
        return threading.current_thread() is self._thread

    def _run(self, binding: Any) -> None:
        while not self._ending:
            binding.virEventRunDefaultImpl()


def _say_nothing(opaque: object, error: object) -> None:
    """What libvirt would print is raised, and said by whoever catches it."""


def _rest(timer: int, opaque: object) -> None:
    libvirt().virEventUpdateTimeout(timer, -1)


EVENT_LOOP = EventLoop()
"""libvirt keeps one a process, so there is one here."""
