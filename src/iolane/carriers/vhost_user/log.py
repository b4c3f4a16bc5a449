"""The front end's log of pages that the device has written ("Migration")."""

from __future__ import annotations

import os
from contextlib import suppress

from iolane.carriers.vhost_user.protocol import LOG_PAGE
from iolane.carriers.vhost_user.rejection import RefusedError, Rejection
from iolane.errors import IolaneError
from iolane.memory.atomic import set_bits
from iolane.memory.mapping import Mapping

LARGEST_LOG = 1 << 40
"""Bytes; logs 32 PiB of memory."""


class SharedLog:
    """A bitmap in shared memory: bit n is the page at guest address n * 4096. It counts from address 0.

    "Use atomic operations, as the log may be concurrently manipulated": bits are set atomically, and after
    the write that they tell of.
    """

    def __init__(self, fd: int, size: int, offset: int) -> None:
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
        self.lost = 0
        """Pages that the log has no bit for: the front end said that it covers all memory."""
        self._bits = memoryview(self.mapping)[skip : skip + size]
        self._signal: int | None = None

    @property
    def pages(self) -> int:
        """How many pages there are bits for."""
        return 8 * self.size

    def mark(self, address: int, length: int) -> None:
        """The device has written [address, address + length) of guest memory."""
        first = address // LOG_PAGE
        count = (address + length - 1) // LOG_PAGE - first + 1 if length > 0 else 0
        self.lost += count - set_bits(self._bits, first, count)
        if self._signal is not None:
            with suppress(OSError):
                os.eventfd_write(self._signal, 1)

    def tell(self, fd: int | None) -> None:
        """Signal this eventfd (ours from now on) at each mark (SET_LOG_FD)."""
        if self._signal is not None:
            os.close(self._signal)
        self._signal = fd

    def close(self) -> None:
        """Give everything back."""
        self.tell(None)
        self._bits.release()
        self.mapping.close()
