"""Work in flight on behalf of a device, so that pausing it can wait until there is none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Activity:
    """Counts work in flight. Everything is called with the device's lock held.

    A callback that itself waits for the device to be idle (it resets the device, say) would wait for itself,
    or for another callback that waits in the same way. So callbacks that wait don't count for one another;
    for everybody else they do.
    """

    def __init__(self, lock: threading.Condition, report: Callable[[str, Exception], None]) -> None:
        self._lock = lock
        self._report = report
        self._own: dict[int, int] = {}
        """Callbacks on the stack of each thread."""
        self._waiting: dict[int, int] = {}
        """How deep each thread is in `wait`."""
        self.count = 0

    def begin(self) -> None:
        """Work starts: a task was given out, or a timer is due."""
        self.count += 1

    def finish(self, what: str, call: Callable[[T], object], value: T) -> None:
        """The last part of some work: its callback. An exception in it is reported, and ends nothing else."""
        thread = threading.get_ident()
        self._own[thread] = self._own.get(thread, 0) + 1
        try:
            call(value)
        except Exception as error:
            self._report(what, error)
        finally:
            self._own[thread] -= 1
            if not self._own[thread]:
                del self._own[thread]
            self.count -= 1
            self._lock.notify_all()

    def wait(self, before_wait: Callable[[], None]) -> None:
        """Return when no work is in flight; the lock is released meanwhile, however often it is held.

        `before_wait` does what can only be done on this thread.
        """
        thread = threading.get_ident()
        self._waiting[thread] = self._waiting.get(thread, 0) + 1
        if thread in self._own:
            self._lock.notify_all()
        try:
            while True:
                before_wait()
                if self.count == (self._parked() if thread in self._own else 0):
                    return
                self._lock.wait()
        finally:
            self._waiting[thread] -= 1
            if not self._waiting[thread]:
                del self._waiting[thread]

    def _parked(self) -> int:
        """Callbacks on the stacks of threads that wait."""
        return sum(self._own.get(thread, 0) for thread in self._waiting)
