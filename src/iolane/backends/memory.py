"""A disk in this process's memory, gone with it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

ZERO_CHUNK = 1 << 20


class MemoryBackend:
    """`size` bytes of memory.

    Args:
        size: bytes, or the content itself.
        block_size: what the back end says of itself.
        read_only: refuse writes.
    """

    def __init__(self, size: int | bytes, *, block_size: int = 512, read_only: bool = False) -> None:
        self.content = bytearray(size)
        self.block_size = block_size
        self.read_only = read_only
        self.reads_zeroes_after_discard = True

    @property
    def size(self) -> int:
        return len(self.content)

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._check(offset, sum(len(buffer) for buffer in buffers))
        with memoryview(self.content) as content:
            for buffer in buffers:
                buffer[:] = content[offset : offset + len(buffer)]
                offset += len(buffer)

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._check(offset, sum(len(buffer) for buffer in buffers), write=True)
        with memoryview(self.content) as content:
            for buffer in buffers:
                content[offset : offset + len(buffer)] = buffer
                offset += len(buffer)

    def flush(self) -> None:
        """Nothing to do: no write is ever safer than it is at once."""

    def discard(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._check(offset, length, write=True)
        zeroes = memoryview(bytes(min(length, ZERO_CHUNK)))
        with memoryview(self.content) as content:
            for start in range(offset, offset + length, ZERO_CHUNK):
                count = min(ZERO_CHUNK, offset + length - start)
                content[start : start + count] = zeroes[:count]

    def close(self) -> None:
        """Nothing to give back."""

    def _check(self, offset: int, length: int, *, write: bool = False) -> None:
        if write and self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if offset < 0 or length < 0 or offset + length > len(self.content):
            raise OSError(errno.EIO, f"{length} bytes at {offset} leave the disk of {len(self.content)}")
