"""Eventfds with which a client unmasks INTx: KVM signals one at the guest's end of interrupt."""

from __future__ import annotations

import os
import select
import threading

from iolane.backends.poller import Poller
from iolane.memory.signals import take
from iolane.model.interrupts import InterruptGroup
from iolane.model.interrupts.group import prepare_eventfd


class Unmasking:
    """Listens to the eventfds of one client, on a thread that starts with the first of them.

    Args:
        name: of the device.
        lock: of the device, under which a vector is unmasked, and every method here is called but `close`.
    """

    def __init__(self, name: str, lock: threading.RLock) -> None:
        self._name = name
        self._lock = lock
        self._poller: Poller | None = None
        self._fds: dict[tuple[int, int], int] = {}

    def listen(self, group: InterruptGroup, vector: int, fd: int) -> None:
        """Unmask `vector` whenever `fd`, which is then ours, is signalled; instead of the one before.

        Raises:
            IolaneError: it is not an eventfd; it is closed then.
        """
        try:
            prepare_eventfd(fd)
        except BaseException:
            os.close(fd)
            raise
        self.forget(group, vector)
        if self._poller is None:
            self._poller = Poller(f"unmasking of {self._name}")
        self._fds[group.index, vector] = fd
        self._arm(self._poller, group, vector, fd)

    def forget(self, group: InterruptGroup, vector: int) -> None:
        """Listen no more, if ever."""
        fd = self._fds.pop((group.index, vector), None)
        if fd is not None and self._poller is not None:
            self._poller.forget(fd)
            os.close(fd)

    def _arm(self, poller: Poller, group: InterruptGroup, vector: int, fd: int) -> None:
        poller.arm(fd, select.EPOLLIN, lambda: self._came(poller, group, vector, fd))

    def _came(self, poller: Poller, group: InterruptGroup, vector: int, fd: int) -> None:
        with self._lock:
            if self._fds.get((group.index, vector)) != fd:  # forgotten since
                return
            try:
                take(fd)
            except BlockingIOError:
                pass
            else:
                group.unmask(vector)
            self._arm(poller, group, vector, fd)

    def close(self) -> None:
        """End the thread and close every eventfd; not under the device's lock."""
        if self._poller is not None:
            self._poller.close()
            self._poller.join()
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
