"""Interrupts of hardware on their way through this process, while somebody wants to see them."""

from __future__ import annotations

import os
import select
from types import TracebackType
from typing import Self

from iolane.backends.poller import Poller
from iolane.carriers.vfio.mediated import MediatedFunction
from iolane.carriers.vfio.passed_irqs import PassedInterrupts
from iolane.model.interrupts import InterruptIndex


class InterruptRelay:
    """Takes each interrupt from the kernel, tells the trace, and passes it on to the guest, on a thread of
    its own. A context manager: leaving ends the thread; the hardware must not signal it any more then.
    """

    def __init__(self, device: MediatedFunction) -> None:
        self._device = device
        self._poller = Poller(f"interrupts of {device.name}")
        self._eventfds: dict[tuple[InterruptIndex, int], int] = {}

    def tap(self, kind: InterruptIndex, vector: int, fd: int) -> int:
        """The eventfd that stands for `fd`, which the group knows. Called under the device's lock."""
        found = self._eventfds.get((kind, vector))
        if found is None:
            found = self._eventfds[kind, vector] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._arm(kind, vector, found)
        return found

    def _arm(self, kind: InterruptIndex, vector: int, fd: int) -> None:
        self._poller.arm(fd, select.EPOLLIN, lambda: self._came(kind, vector, fd))

    def _came(self, kind: InterruptIndex, vector: int, fd: int) -> None:
        with self._device.lock:
            try:
                os.eventfd_read(fd)
            except BlockingIOError:
                pass
            else:
                interrupts = self._device.interrupts
                group = interrupts.group(kind)
                interrupts.delivered(kind, vector)
                if isinstance(group, PassedInterrupts):
                    group.pass_on(vector)
        self._arm(kind, vector, fd)

    def close(self) -> None:
        """End the thread; not under the device's lock."""
        self._poller.close()
        self._poller.join()
        for fd in self._eventfds.values():
            os.close(fd)
        self._eventfds.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
