"""The front end's log of pages that the device has written ("Migration")."""

from __future__ import annotations

import os

from iolane.carriers.vhost_user.protocol import LOG_PAGE
from iolane.carriers.vhost_user.rejection import RefusedError, Rejection
from iolane.errors import IolaneError
from iolane.memory.atomic import set_bits
from iolane.memory.mapping import Mapping
from iolane.memory.signals import Signaller

LARGEST_LOG = 1 << 40
"""Bytes; logs 32 PiB of memory."""


class LogSignal:
    """The eventfd that tells a front end of marks, if it gave one (SET_LOG_FD). It outlives each log."""

    def __init__(self, signaller: Signaller) -> None:
        self.fd = -1
        self._signaller = signaller

    def use(self, fd: int) -> None:
        """Signal this eventfd, ours from now on. No ring runs: compiled ones know the earlier one."""
        self.close()
        self.fd = fd

    def tell(self) -> None:
        """The log was marked."""
        if self.fd >= 0:
            self._signaller.signal(self.fd)

    def close(self) -> None:
        """Signal nothing any more."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class SharedLog:
    """A bitmap in shared memory: bit n is the page at guest address n * 4096. It counts from address 0.

    "Use atomic operations, as the log may be concurrently manipulated": bits are set atomically, and after
    the write that they tell of.
    """

    def __init__(self, fd: int, size: int, offset: int, signal: LogSignal) -> None:
        if not 0 < size <= LARGEST_LOG or offset < 0 or offset + size > 1 << 62:
            raise RefusedError(Rejection.LOG_SIZE, f"{size:#x} bytes from {offset:#x} on")
        skip = offset % os.sysconf("SC_PAGE_SIZE")
        try:
            self.mapping = Mapping(fd, skip + size, offset - skip)
        except (IolaneError, OSError) as error:
            raise RefusedError(Rejection.LOG_SIZE, str(error)) from None
        self.size = size
        self.offset = skip
        """Of the log's first byte in `mapping`."""
        self.signal = signal
        self.lost = 0
        """Pages that the log has no bit for: the front end said that it covers all memory."""
        self._bits = memoryview(self.mapping)[skip : skip + size]

    @property
    def pages(self) -> int:
        """How many pages there are bits for."""
        return 8 * self.size

    def mark(self, address: int, length: int) -> None:
        """The device has written [address, address + length) of guest memory."""
        first = address // LOG_PAGE
        count = (address + length - 1) // LOG_PAGE - first + 1 if length > 0 else 0
        self.lost += count - set_bits(self._bits, first, count)
        self.signal.tell()

    def close(self) -> None:
        """Give everything back."""
        self._bits.release()
        self.mapping.close()
