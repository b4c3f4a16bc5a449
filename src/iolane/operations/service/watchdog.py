"""Telling the service manager again and again that this process is well, for as long as it is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from iolane.operations.service.notify import Notifier

_log = logging.getLogger("iolane.service")


class Watchdog:
    """A thread that asks `problem`, and tells the manager when there is none. A context manager.

    It asks twice an interval, as sd_watchdog_enabled(3) recommends. While there is a problem nothing is told:
    then the manager ends this process and starts it anew.

    Args:
        notifier: the manager; when it does not ask for this, nothing happens.
        problem: what is wrong with this process, or None. It may take a quarter of the interval.
    """

    def __init__(self, notifier: Notifier, problem: Callable[[float], str | None]) -> None:
        self._notifier = notifier
        self._problem = problem
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        if self._notifier.watchdog is not None:
            arguments = (self._notifier.watchdog,)
            self._thread = threading.Thread(target=self._run, args=arguments, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, interval: float) -> None:
        told: str | None = None
        while True:
            problem = self._problem(interval / 4)
            if problem is None:
                self._notifier.alive()
            elif problem != told:
                _log.error("the watchdog is not told that all is well: %s", problem)
                self._notifier.status(problem)
            told = problem
            if self._ended.wait(interval / 2):
                return
