"""What a disk's device needs of the image behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class BlockBackend(Protocol):
    """An array of bytes that survives: a file, a block device, memory.

    Every method may be called from several worker threads at once. What fails raises `OSError` with the
    errno that says why (`ENOSPC`, `EIO`, `EROFS`, `EFAULT` where a buffer's memory is gone): a device turns
    it into the status of its specification. Offsets and lengths lie within `size`, the device has checked.
    """

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def block_size(self) -> int:
        """The smallest piece that is written at once, a power of two from 512."""

    @property
    def read_only(self) -> bool:
        """Writes are refused with `EROFS`."""

    @property
    def reads_zeroes_after_discard(self) -> bool:
        """What `discard` dropped reads as zeroes."""

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill all the buffers from `offset` on."""

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Write all the buffers from `offset` on. What it wrote may be lost with the power until `flush`."""

    def flush(self) -> None:
        """Return when everything whose write had returned before is safe from loss of power."""

    def discard(self, offset: int, length: int) -> None:
        """The content is no longer needed. A back end that can't drop it does nothing."""

    def write_zeroes(self, offset: int, length: int) -> None:
        """Write zeroes, as cheaply as can be while keeping the space allocated."""

    def close(self) -> None:
        """Flush nothing, give everything back. The second call does nothing."""
