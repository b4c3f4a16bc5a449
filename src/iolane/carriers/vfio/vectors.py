"""Interrupts of a function as a driver in Python waits for them."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from iolane.uapi.vfio import PciIrq

WAIT_S = 5.0


class Interrupting(Protocol):
    """What is needed of a `VfioFunction`."""

    def set_irqs(self, index: int, start: int, eventfds: Sequence[int | None]) -> None: ...
    def disable_irqs(self, index: int) -> None: ...
    def unmask_irqs(self, index: int, start: int = 0, count: int = 1) -> None: ...


class Vectors:
    """`count` vectors of a kind, enabled, each with an eventfd. A context manager: leaving disables them.

    Raises:
        VfioError: they can't be had.
    """

    def __init__(self, function: Interrupting, kind: PciIrq, count: int = 1) -> None:
        self.kind = kind
        self._function = function
        self.eventfds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
        try:
            function.set_irqs(kind, 0, self.eventfds)
        except BaseException:
            self._close_eventfds()
            raise

    def taken(self, vector: int = 0) -> int:
        """Interrupts of `vector` since the last call. INTx is then unmasked."""
        try:
            count = os.eventfd_read(self.eventfds[vector])
        except BlockingIOError:
            return 0
        if self.kind is PciIrq.INTX:
            self._function.unmask_irqs(self.kind)
        return count

    def wait(self, vector: int = 0, timeout: float = WAIT_S) -> int:
        """Wait for `vector`; the number of interrupts, 0 when the time is over."""
        poll = select.poll()
        poll.register(self.eventfds[vector], select.POLLIN)
        return self.taken(vector) if poll.poll(timeout * 1000) else 0

    def close(self) -> None:
        """Disable them, close the eventfds."""
        if self.eventfds:
            self._function.disable_irqs(self.kind)
            self._close_eventfds()

    def _close_eventfds(self) -> None:
        for fd in self.eventfds:
            os.close(fd)
        self.eventfds = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
