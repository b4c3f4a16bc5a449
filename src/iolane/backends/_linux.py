"""Calls on images that the os module lacks: fallocate's modes, ioctls of block devices, OFD locks."""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import functools
import os
import struct
from enum import IntFlag

BLKSSZGET = 0x1268
BLKROGET = 0x125E
BLKDISCARD = 0x1277
BLKZEROOUT = 0x127F
BLKGETSIZE64 = 0x80081272
"""_IOR(0x12, 114, size_t), with the 8 bytes of a 64-bit system."""

_FLOCK = struct.Struct("hhxxxxqqixxxx")


class FallocateMode(IntFlag):
    """Modes of fallocate(2), from linux/falloc.h."""

    KEEP_SIZE = 0x01
    PUNCH_HOLE = 0x02
    ZERO_RANGE = 0x10


@functools.cache
def _libc_fallocate() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    return function


def fallocate(fd: int, mode: FallocateMode, offset: int, length: int) -> None:
    """fallocate(2). Raises OSError, `EOPNOTSUPP` where the file system has no such mode."""
    while _libc_fallocate()(fd, int(mode), offset, length):
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def punches_holes(fd: int, size: int) -> bool:
    """Whether the file system drops ranges. Asked with a range past the end, which changes nothing."""
    try:
        fallocate(fd, FallocateMode.PUNCH_HOLE | FallocateMode.KEEP_SIZE, size, 4096)
    except OSError:
        return False
    return True


def device_size(fd: int) -> int:
    """Bytes of a block device."""
    (size,) = struct.unpack("Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))
    return int(size)


def device_block_size(fd: int) -> int:
    """Bytes of a logical block of a block device."""
    (size,) = struct.unpack("i", fcntl.ioctl(fd, BLKSSZGET, bytes(4)))
    return int(size)


def device_read_only(fd: int) -> bool:
    """The kernel refuses writes to this block device."""
    (flag,) = struct.unpack("i", fcntl.ioctl(fd, BLKROGET, bytes(4)))
    return bool(flag)


def device_range(fd: int, request: int, offset: int, length: int) -> None:
    """BLKDISCARD or BLKZEROOUT of a range."""
    fcntl.ioctl(fd, request, array.array("Q", (offset, length)), False)


def lock(fd: int, *, exclusive: bool) -> bool:
    """Lock the whole file for this open file description. False when somebody else holds it.

    QEMU locks single bytes of its images in the same way, so each of us keeps the other out.
    """
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
