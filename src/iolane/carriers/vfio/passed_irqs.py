"""Interrupts of hardware as a carrier connects them: its eventfds go to the kernel, no thread is between."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from iolane.carriers.vfio.function import VfioFunction
from iolane.carriers.vfio.ioctl import VfioError
from iolane.errors import IolaneError
from iolane.model.interrupts import InterruptGroup, InterruptIndex
from iolane.model.interrupts.group import prepare_eventfd

Tap = Callable[[InterruptIndex, int, int], int]
"""Given (kind, vector, the carrier's eventfd): the eventfd that the kernel is to signal instead."""


class PassedInterrupts(InterruptGroup):
    """The vectors of one kind of a function.

    MSI-X without `resizable` is enabled with every vector at once: to add one, the kernel would have to
    disable all, and what came meanwhile would be lost. MSI is enabled with as many vectors as the guest
    wants, since the device is told their number.
    """

    def __init__(self, function: VfioFunction, index: InterruptIndex) -> None:
        irq = function.irq(index)
        super().__init__(index, irq.count, automasked=irq.automasked, changed=lambda _: None)
        self._function = function
        self._resizable = irq.resizable
        self._enabled = 0
        """Vectors that the kernel has enabled."""
        self._tap: Tap | None = None
        self._unmask_fd = -1

    def connect(self, vector: int, fd: int | None) -> None:
        self.connect_range(vector, [fd])

    def connect_range(self, start: int, fds: Sequence[int | None]) -> None:
        """Hand eventfds to the kernel; the first call enables the kind, even without any."""
        try:
            for number, fd in enumerate(fds):
                self._check(start + number)
                if fd is not None:
                    prepare_eventfd(fd)
        except IolaneError:
            _close(fds)
            raise
        for number, fd in enumerate(fds):
            earlier = self._fds.pop(start + number, None)
            if earlier is not None:
                os.close(earlier)
            if fd is not None:
                self._fds[start + number] = fd
        try:
            self._set(start, len(fds))
        except VfioError:
            for number in range(len(fds)):
                lost = self._fds.pop(start + number, None)
                if lost is not None:
                    os.close(lost)
            raise

    def _set(self, start: int, count: int) -> None:
        if start + count <= self._enabled or (self._enabled and self._resizable):
            self._function.set_irqs(self.index, start, self._handed(start, count))
            self._enabled = max(self._enabled, start + count)
            return
        wanted = start + count
        if self._enabled:
            self._function.disable_irqs(self.index)
            self._enabled = 0
        if self.index is InterruptIndex.MSIX and not self._resizable:
            with suppress(VfioError):  # the host has not that many: as many as are needed, then
                self._function.set_irqs(self.index, 0, self._handed(0, self.count))
                self._enabled = self.count
                return
        self._function.set_irqs(self.index, 0, self._handed(0, wanted))
        self._enabled = wanted

    def _handed(self, start: int, count: int) -> list[int | None]:
        """The eventfds for the kernel."""
        handed: list[int | None] = []
        for vector in range(start, start + count):
            fd = self._fds.get(vector)
            handed.append(fd if fd is None or self._tap is None else self._tap(self.index, vector, fd))
        return handed

    def tap(self, tap: Tap | None) -> None:
        """Put eventfds of somebody else's between, who passes signals on; None takes them out again."""
        self._tap = tap
        for vector in sorted(self._fds):
            self._function.set_irqs(self.index, vector, self._handed(vector, 1))

    def disconnect_all(self) -> None:
        if self._enabled:
            self._enabled = 0
            self._function.disable_irqs(self.index)
        super().disconnect_all()
        if self._unmask_fd >= 0:
            os.close(self._unmask_fd)
            self._unmask_fd = -1

    def mask(self, vector: int) -> None:
        self._check(vector)
        self._function.mask_irqs(self.index, vector)

    def unmask(self, vector: int) -> None:
        self._check(vector)
        self._function.unmask_irqs(self.index, vector)

    def connect_unmask(self, vector: int, fd: int) -> bool:
        """KVM's resample eventfd goes to the kernel, too."""
        try:
            self._check(vector)
            prepare_eventfd(fd)
            self._function.set_unmask_eventfd(self.index, fd)
        except IolaneError:
            os.close(fd)
            raise
        if self._unmask_fd >= 0:
            os.close(self._unmask_fd)
        self._unmask_fd = fd
        return True

    def signal(self, vector: int) -> bool:
        """Signal as if the function had interrupted. True if the vector is connected."""
        if vector not in self._fds:
            return False
        self._function.trigger_irqs(self.index, vector)
        return True

    def pass_on(self, vector: int) -> bool:
        """Signal the carrier's eventfd for an interrupt that a tap has taken."""
        return super().signal(vector)


def _close(fds: Sequence[int | None]) -> None:
    for fd in fds:
        if fd is not None:
            os.close(fd)
