"""Signals that end the process, held back while something is taken that must be given back.

A signal handler raises between any two steps of the program, also between making a socket and noting that it
has to be removed. `with INTERRUPTION.held():` around both makes them one step. Signals belong to the process,
so there is one `INTERRUPTION`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interruption:
    """What a signal handler raises, now or as soon as it may. Handlers run in the main thread."""

    def __init__(self) -> None:
        self._depth = 0
        self._pending: BaseException | None = None

    def arrive(self, error: BaseException) -> None:
        """Raise `error`, or keep it until nothing holds it back."""
        if not self._depth:
            raise error
        self._pending = self._pending or error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is raised inside; keep what is inside short. In other threads nothing is raised anyway."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth and self._pending is not None:
                pending, self._pending = self._pending, None
                raise pending


INTERRUPTION = Interruption()
