"""A guest or a client may cause as many log lines as it likes; the log takes so many of them a while."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

BURST, PERIOD = 1000, 30.0
"""Records in seconds: what journald lets a service write by default is of that size (journald.conf(5))."""


class Torrent(logging.Filter):
    """Lets `burst` records pass in each `period`. How many were dropped is told when the next one begins.

    Args:
        tell: takes the record that says so.
        burst: records.
        period: seconds.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        tell: Callable[[logging.LogRecord], object],
        *,
        burst: int = BURST,
        period: float = PERIOD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._tell = tell
        self._burst = burst
        self._period = period
        self._clock = clock
        self._lock = threading.Lock()
        self._began = clock()
        self._passed = 0
        self._dropped = 0

    def filter(self, record: logging.LogRecord) -> bool:
        with self._lock:
            now = self._clock()
            dropped = 0
            if now - self._began >= self._period:
                self._began, self._passed = now, 0
                dropped, self._dropped = self._dropped, 0
            passes = self._passed < self._burst
            self._passed += passes
            self._dropped += not passes
        if dropped:
            text = f"{dropped} lines were left out: more than {self._burst} in {self._period:g} s"
            self._tell(logging.LogRecord("iolane.service", logging.WARNING, "", 0, text, None, None))
        return passes
