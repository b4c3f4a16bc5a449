"""The threads of a carrier: a few for tasks, one for timers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from iolane.errors import IolaneError
from iolane.model.agenda import Agenda, Entry
from iolane.model.observers import Observers

_log = logging.getLogger("iolane.workers")

LONGEST_WAIT = 3600.0
"""Seconds; a timer that is further away is looked at again after this."""


class Workers:
    """A fixed number of threads, shared by any number of devices.

    The threads are no daemons: a process that forgets `close` does not end. Use it as a context manager.

    Attributes:
        exceptions: calls that raised; each is told to `on_exception` and logged.
    """

    def __init__(self, threads: int = 4, *, name: str = "iolane") -> None:
        if threads < 1:
            raise IolaneError(f"workers need at least one thread, not {threads}")
        self.exceptions = 0
        self.on_exception: Observers[BaseException] = Observers()
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._agenda = Agenda()
        self._changed = threading.Condition(threading.Lock())
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run_jobs, name=f"{name}-worker-{number}")
            for number in range(threads)
        ]
        self._threads.append(threading.Thread(target=self._run_timers, name=f"{name}-timer"))
        for thread in self._threads:
            thread.start()

    def submit(self, job: Callable[[], object]) -> None:
        """Call `job` in one of the threads."""
        with self._changed:
            if self._closed:
                raise IolaneError("the worker threads are closed")
            self._jobs.put(job)

    def wake_at(self, monotonic_ns: int, call: Callable[[], object]) -> Entry:
        """Call `call` in the timer thread at a time of `time.monotonic_ns`."""
        with self._changed:
            entry = self._agenda.push(monotonic_ns, call)
            if self._agenda.next_deadline() == monotonic_ns:
                self._changed.notify()
            return entry

    def cancel_wake(self, entry: Entry) -> None:
        """Don't make a call that was asked of `wake_at`; it may be under way already."""
        with self._changed:
            self._agenda.cancel(entry)

    def close(self) -> None:
        """Finish what was submitted, forget the timers, join the threads. A second call does nothing."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._agenda.clear()
            self._changed.notify()
            for _ in self._threads:
                self._jobs.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _run_jobs(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            self._call(job)
            del job

    def _run_timers(self) -> None:
        while True:
            entry = self._wait_for_due()
            if entry is None:
                return
            call, entry.call = entry.call, None
            if call is not None:
                self._call(call)
            del call, entry

    def _wait_for_due(self) -> Entry | None:
        """The next timer once it is due; None when closed."""
        with self._changed:
            while not self._closed:
                now = time.monotonic_ns()
                entry = self._agenda.pop_due(now)
                if entry is not None:
                    return entry
                deadline = self._agenda.next_deadline()
                wait = LONGEST_WAIT if deadline is None else min((deadline - now) / 1e9, LONGEST_WAIT)
                self._changed.wait(wait)
        return None

    def _call(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            with self._changed:
                self.exceptions += 1
            self.on_exception.notify(error)
            _log.error("a call in a worker thread failed", exc_info=error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
