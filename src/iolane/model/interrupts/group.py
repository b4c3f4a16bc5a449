"""The eventfds a carrier supplies for one kind of interrupt."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from enum import IntEnum

from iolane.errors import IolaneError
from iolane.memory.signals import Signaller


class InterruptIndex(IntEnum):
    """Kinds of interrupt in VFIO's numbering (linux/vfio.h, VFIO_PCI_*_IRQ_INDEX)."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERROR = 3
    REQUEST = 4


class InterruptGroup:
    """The vectors of one interrupt kind, each connected to an eventfd or not, masked by the carrier or not.

    Args:
        index: which kind.
        count: number of vectors.
        automasked: signalling masks the vector until the carrier unmasks it (INTx; linux/vfio.h,
            VFIO_IRQ_INFO_AUTOMASKED).
        changed: called with a vector that may now be deliverable.
    """

    def __init__(
        self, index: InterruptIndex, count: int, *, automasked: bool = False, changed: Callable[[int], None]
    ) -> None:
        self.index = index
        self.count = count
        self.automasked = automasked
        self._changed = changed
        self._fds: dict[int, int] = {}
        self._masked: set[int] = set()
        self._signaller = Signaller()

    @property
    def connected(self) -> bool:
        """Whether any vector has an eventfd."""
        return bool(self._fds)

    def ready(self, vector: int) -> bool:
        """Whether `vector` has an eventfd and is not masked by the carrier."""
        return vector in self._fds and vector not in self._masked

    def is_masked(self, vector: int) -> bool:
        """Whether the carrier masked `vector`."""
        return vector in self._masked

    def connect(self, vector: int, fd: int | None) -> None:
        """Give `vector` an eventfd, which this group then owns, or take it away with None. The earlier one
        is closed.

        Raises:
            IolaneError: no such vector, or `fd` is not an eventfd; `fd` is closed then, too.
        """
        if fd is not None:
            try:
                self._check(vector)
                prepare_eventfd(fd)
            except IolaneError:
                os.close(fd)
                raise
        else:
            self._check(vector)
        earlier = self._fds.pop(vector, None)
        if earlier is not None:
            os.close(earlier)
        if fd is None:
            self._masked.discard(vector)
            return
        self._fds[vector] = fd
        if self.automasked:
            self._masked.discard(vector)
        self._changed(vector)

    def connect_range(self, start: int, fds: Sequence[int | None]) -> None:
        """`connect` vectors from `start` on; all of them or none.

        Raises:
            IolaneError: one of them can't be connected; every descriptor is closed then.
        """
        for number, fd in enumerate(fds):
            try:
                self.connect(start + number, fd)
            except IolaneError:
                for connected in range(start, start + number):
                    self.connect(connected, None)
                for unused in fds[number + 1 :]:
                    if unused is not None:
                        os.close(unused)
                raise

    def connect_unmask(self, vector: int, fd: int) -> bool:
        """Have this eventfd unmask `vector` whenever it is signalled, where hardware does so by itself. False
        where nothing here does: then the eventfd stays the caller's, who listens to it and calls `unmask`.

        Raises:
            IolaneError: the hardware does not take it; it is closed then.
        """
        return False

    def disconnect_all(self) -> None:
        """Close every eventfd and forget the carrier's masks."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._masked.clear()

    def mask(self, vector: int) -> None:
        """The carrier masks `vector`."""
        self._check(vector)
        self._masked.add(vector)

    def unmask(self, vector: int) -> None:
        """The carrier unmasks `vector`; what is pending is delivered."""
        self._check(vector)
        self._masked.discard(vector)
        self._changed(vector)

    def trigger(self, vector: int) -> bool:
        """Signal the eventfd of `vector` as a test of the wiring. True if there is one."""
        self._check(vector)
        return self.signal(vector)

    def signal(self, vector: int) -> bool:
        """Signal the eventfd of `vector`, without waiting for whoever has it, too. True if it has one; a full
        counter is as good as another count.
        """
        fd = self._fds.get(vector)
        if fd is None:
            return False
        self._signaller.signal(fd)
        if self.automasked:
            self._masked.add(vector)
        return True

    def _check(self, vector: int) -> None:
        if not 0 <= vector < self.count:
            raise IolaneError(f"{self.index.name} has {self.count} vectors, there is no vector {vector}")


def prepare_eventfd(fd: int) -> None:
    """Have an eventfd not wait, as long as its peer leaves that so. Raises `IolaneError` where it is none."""
    try:
        kind = os.readlink(f"/proc/self/fd/{fd}")
        if kind != "anon_inode:[eventfd]":
            raise IolaneError(f"an interrupt needs an eventfd, not {kind}")
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
    except OSError as error:
        raise IolaneError(f"an interrupt's eventfd cannot be used: {error.strerror}") from error
