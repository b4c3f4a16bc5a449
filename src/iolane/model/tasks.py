"""Slow work of a device, off its lock."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from iolane.model.activity import Activity
from iolane.model.workers import Workers

T = TypeVar("T")


class Tasks:
    """Runs work in the carrier's threads and its end under the device's lock.

    Without workers (the in-memory carrier) work runs at once, in the caller; a task given out by a task's end
    runs after it, so chains of tasks need no stack.
    """

    def __init__(self, lock: threading.Condition, activity: Activity) -> None:
        self._lock = lock
        self._activity = activity
        self._workers: Workers | None = None
        self._waiting: deque[Callable[[], None]] = deque()
        self._inline = False
        self.started = 0
        """Tasks ever given out."""

    @property
    def running(self) -> int:
        """Tasks and timers whose end has not come yet."""
        return self._activity.count

    def run(
        self, work: Callable[[], T], done: Callable[[T], object], failed: Callable[[BaseException], object]
    ) -> None:
        """Call `work` without the device's lock, then, locked, `done` with its result or `failed`.

        Memory that `work` touches is held by `self.dma.pin` first.
        """
        with self._lock:
            self._activity.begin()
            self.started += 1
            try:
                self._give_out(lambda: self._perform(work, done, failed))
            except BaseException:
                self._activity.count -= 1
                raise

    def _give_out(self, job: Callable[[], None]) -> None:
        if self._workers is not None:
            self._workers.submit(job)
            return
        self._waiting.append(job)
        if self._inline:
            self._lock.notify_all()
        else:
            self._inline = True
            try:
                self.run_waiting()
            finally:
                self._inline = False

    def run_waiting(self) -> None:
        """Run what waits for the end of an inline task: pausing can't wait for what would run after it."""
        while self._waiting:
            self._waiting.popleft()()

    def _perform(
        self, work: Callable[[], T], done: Callable[[T], object], failed: Callable[[BaseException], object]
    ) -> None:
        try:
            result = work()
        except BaseException as error:
            with self._lock:
                self._activity.finish("a task's failure", failed, error)
        else:
            with self._lock:
                self._activity.finish("a task's end", done, result)

    def attach(self, workers: Workers | None) -> None:
        """Give work to these threads from now on. Called while nothing is in flight."""
        self._workers = workers
