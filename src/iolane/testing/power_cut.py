"""A disk whose power can be cut: the proof that flush means flush."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Sequence
from typing import NamedTuple

from iolane.backends.block import BlockBackend

PAGE = 4096
_ZERO_PAGE = bytes(PAGE)


class _Change(NamedTuple):
    """A write that is not flushed yet; zeroes where it has no data."""

    offset: int
    length: int
    data: bytes | None


class PowerCut:
    """Keeps what is written in a volatile cache before `backend`, until `flush`.

    `cut()` forgets the cache. A seed makes it a cut in the middle of writing back: the disk had begun, in an
    order of its own, and each aligned piece of `atomic` bytes of each write got there or not.

    Args:
        backend: what survives.
        atomic: bytes that are written wholly or not at all. (ext4 needs it to hold for its superblock.)
    """

    def __init__(self, backend: BlockBackend, *, atomic: int = 512) -> None:
        self.backend = backend
        self.atomic = atomic
        self.powered = True
        self.flushes = 0
        self._lock = threading.Lock()
        self._log: list[_Change] = []
        self._pages: dict[int, bytes | bytearray] = {}

    @property
    def size(self) -> int:
        return self.backend.size

    @property
    def block_size(self) -> int:
        return self.backend.block_size

    @property
    def read_only(self) -> bool:
        return self.backend.read_only

    @property
    def reads_zeroes_after_discard(self) -> bool:
        return True

    @property
    def unflushed(self) -> int:
        """Bytes that a cut would lose."""
        return sum(change.length for change in self._log)

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        with self._lock:
            self._check_power()
            self.backend.readv(offset, buffers)
            for buffer in buffers:
                self._overlay(offset, buffer)
                offset += len(buffer)

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        data = b"".join(buffers)
        with self._lock:
            self._check_power()
            if self.read_only:
                raise OSError(errno.EROFS, "read-only")
            self._log.append(_Change(offset, len(data), data))
            self._cache(offset, data)

    def discard(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length)

    def write_zeroes(self, offset: int, length: int) -> None:
        with self._lock:
            self._check_power()
            if self.read_only:
                raise OSError(errno.EROFS, "read-only")
            self._log.append(_Change(offset, length, None))
            whole_start, whole_end = -(-offset // PAGE) * PAGE, (offset + length) // PAGE * PAGE
            if whole_start >= whole_end:
                self._cache(offset, bytes(length))
                return
            self._cache(offset, bytes(whole_start - offset))
            for page in range(whole_start // PAGE, whole_end // PAGE):
                self._pages[page] = _ZERO_PAGE
            self._cache(whole_end, bytes(offset + length - whole_end))

    def flush(self) -> None:
        with self._lock:
            self._check_power()
            for change in self._log:
                self._write_back(change)
            self.backend.flush()
            self.flushes += 1
            self._forget()

    def cut(self, seed: int | None = None) -> None:
        """The power is gone: every access fails until `restore`, and what was not flushed is lost.

        Args:
            seed: let a part of it arrive, torn and out of order; the same seed, the same part.
        """
        with self._lock:
            if seed is not None and self.powered:
                self._tear(random.Random(seed))
            self.powered = False
            self._forget()

    def restore(self) -> None:
        """The power is back."""
        self.powered = True

    def close(self) -> None:
        self.backend.close()

    def _check_power(self) -> None:
        if not self.powered:
            raise OSError(errno.EIO, "the power is cut")

    def _forget(self) -> None:
        self._log.clear()
        self._pages.clear()

    def _write_back(self, change: _Change) -> None:
        if change.data is None:
            self.backend.write_zeroes(change.offset, change.length)
        else:
            self.backend.writev(change.offset, [memoryview(change.data)])

    def _tear(self, chance: random.Random) -> None:
        changes = list(self._log)
        chance.shuffle(changes)
        for change in changes:
            if change.data is None:
                if chance.random() < 0.5:
                    self._write_back(change)
                continue
            start = 0
            while start < change.length:
                piece = change.data[start : start + self.atomic - (change.offset + start) % self.atomic]
                if chance.random() < 0.5:
                    self._write_back(_Change(change.offset + start, len(piece), piece))
                start += len(piece)

    def _cache(self, offset: int, data: bytes) -> None:
        position = 0
        while position < len(data):
            number, skip = divmod(offset + position, PAGE)
            count = min(PAGE - skip, len(data) - position)
            page = self._page(number)
            page[skip : skip + count] = data[position : position + count]
            position += count

    def _page(self, number: int) -> bytearray:
        page = self._pages.get(number)
        if isinstance(page, bytearray):
            return page
        if page is None:
            start = number * PAGE
            page = bytearray(PAGE)
            with memoryview(page) as view:
                self.backend.readv(start, [view[: min(PAGE, self.size - start)]])
        self._pages[number] = content = bytearray(page)
        return content

    def _overlay(self, offset: int, buffer: memoryview) -> None:
        position = 0
        while position < len(buffer):
            number, skip = divmod(offset + position, PAGE)
            count = min(PAGE - skip, len(buffer) - position)
            page = self._pages.get(number)
            if page is not None:
                buffer[position : position + count] = page[skip : skip + count]
            position += count


class FlushForgotten(PowerCut):
    """The mutant: its flush claims success and keeps nothing. A test of durability must fail on it.

    `forgets` may be switched off for a while, to prepare the disk.
    """

    forgets = True

    def flush(self) -> None:
        if not self.forgets:
            super().flush()
            return
        with self._lock:
            self._check_power()
            self.flushes += 1
