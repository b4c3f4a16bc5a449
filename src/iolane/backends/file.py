"""Disks in raw files and on block devices of the host."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from iolane.backends import _linux
from iolane.backends._linux import FallocateMode
from iolane.errors import IolaneError

IOV_MAX = os.sysconf("SC_IOV_MAX") if os.sysconf("SC_IOV_MAX") > 0 else 1024
ZERO_CHUNK = 1 << 20
"""Bytes of zeroes written at once where the file system can't do it."""
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY)


class FileBackend:
    """A raw image: a regular file or a block device.

    Args:
        path: the image.
        read_only: open it for reading only; several may then share it.
        lock: keep everybody else off the image while it is open.

    Raises:
        IolaneError: it is missing, empty, no image, not permitted, or in use.
    """

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False, lock: bool = True) -> None:
        self.path = Path(path)
        self.read_only = read_only
        self._fd = _open(self.path, read_only)
        try:
            mode = os.fstat(self._fd).st_mode
            self.is_device = stat.S_ISBLK(mode)
            if not self.is_device and not stat.S_ISREG(mode):
                raise IolaneError(
                    f"{self.path} is neither a file nor a block device",
                    remedy="name a raw disk image, made for instance by: truncate -s 1G disk.raw",
                )
            if lock:
                _lock(self._fd, self.path, exclusive=not read_only)
            self._measure()
        except BaseException:
            self.close()
            raise

    def _measure(self) -> None:
        self.block_size = 512
        if self.is_device:
            self.size = _linux.device_size(self._fd)
            self.block_size = _linux.device_block_size(self._fd)
            if not self.read_only and _linux.device_read_only(self._fd):
                raise IolaneError(f"{self.path} is a read-only device", remedy="add read_only=on")
        else:
            self.size = os.fstat(self._fd).st_size
        if self.size < self.block_size:
            raise IolaneError(
                f"{self.path} is empty", remedy=f"give it a size, for instance: truncate -s 1G {self.path}"
            )
        self._punches = (
            not self.is_device and not self.read_only and _linux.punches_holes(self._fd, self.size)
        )
        self.reads_zeroes_after_discard = self._punches

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._transfer(os.preadv, offset, buffers, "the image has become shorter")

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._check_writable()
        self._transfer(os.pwritev, offset, buffers, "the image takes no more")

    def _transfer(self, call: _Transfer, offset: int, buffers: Sequence[memoryview], ended: str) -> None:
        """preadv or pwritev until all the buffers are done, also when it does a part only."""
        left = [buffer for buffer in buffers if len(buffer)]
        while left:
            count = call(self._fd, left[:IOV_MAX], offset)
            if count == 0:
                raise OSError(errno.EIO, f"{ended}: {self.path} at {offset}")
            offset += count
            left = _skip(left, count)

    def fileno(self) -> int:
        """The descriptor of the image, which stays the back end's."""
        return self._fd

    def flush(self) -> None:
        os.fdatasync(self._fd)

    def discard(self, offset: int, length: int) -> None:
        self._check_writable()
        if self.is_device:
            try:
                _linux.device_range(self._fd, _linux.BLKDISCARD, offset, length)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
        elif self._punches:
            _linux.fallocate(self._fd, FallocateMode.PUNCH_HOLE | FallocateMode.KEEP_SIZE, offset, length)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._check_writable()
        try:
            if self.is_device:
                _linux.device_range(self._fd, _linux.BLKZEROOUT, offset, length)
            else:
                mode = FallocateMode.ZERO_RANGE | FallocateMode.KEEP_SIZE
                _linux.fallocate(self._fd, mode, offset, length)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            self._write_zero_chunks(offset, length)

    def _write_zero_chunks(self, offset: int, length: int) -> None:
        zeroes = memoryview(bytes(min(length, ZERO_CHUNK)))
        while length:
            piece = zeroes[: min(length, ZERO_CHUNK)]
            self.writev(offset, [piece])
            offset += len(piece)
            length -= len(piece)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _check_writable(self) -> None:
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def __repr__(self) -> str:
        return f"FileBackend({str(self.path)!r}{', read_only=True' if self.read_only else ''})"


class _Transfer(Protocol):
    def __call__(self, fd: int, buffers: Sequence[memoryview], offset: int, /) -> int: ...


def _skip(buffers: list[memoryview], count: int) -> list[memoryview]:
    """What is left of the buffers after `count` bytes."""
    for place, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[place + 1 :]]
        count -= len(buffer)
    return []


def _open(path: Path, read_only: bool) -> int:
    # O_NONBLOCK: a FIFO must be refused, not waited for.
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except FileNotFoundError as error:
        remedy = f"make one with: truncate -s 1G {path}"
        raise IolaneError(f"there is no image {path}", remedy=remedy) from error
    except PermissionError as error:
        if not read_only and os.access(path, os.R_OK):
            raise IolaneError(f"no permission to write {path}", remedy="add read_only=on") from error
        raise IolaneError(f"no permission to open {path}") from error
    except IsADirectoryError as error:
        raise IolaneError(f"{path} is a directory, not an image") from error
    except OSError as error:
        hint = "add read_only=on" if error.errno == errno.EROFS else None
        raise IolaneError(f"{path}: {(error.strerror or str(error)).lower()}", remedy=hint) from error


def _lock(fd: int, path: Path, *, exclusive: bool) -> None:
    try:
        held = _linux.lock(fd, exclusive=exclusive)
    except OSError as error:
        raise IolaneError(
            f"{path} can't be locked: {(error.strerror or str(error)).lower()}",
            remedy="copy it to a file system with locks",
        ) from error
    if not held:
        raise IolaneError(
            f"{path} is in use by another program",
            remedy="stop it, or open the image read-only on both sides",
        )
