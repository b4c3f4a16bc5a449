"""The one place from which the kernel's VFIO is called. Tests put a kernel of their own in its place."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Protocol

from iolane.errors import IolaneError
from iolane.memory.mapping import Mapping


class VfioError(IolaneError):
    """What the kernel refused, or what would be refused. `errno` is the kernel's answer, 0 when it was not
    asked.
    """

    def __init__(self, message: str, *, errno: int = 0, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.errno = errno


class Kernel(Protocol):
    """What VFIO is used through: descriptors, and calls on them. Failures are `OSError`s.

    Descriptors are real ones (they are passed to other processes and polled), whoever made them.
    """

    def open(self, path: str) -> int:
        """Open a character device for reading and writing."""

    def close(self, fd: int) -> None: ...

    def ioctl(self, fd: int, request: int, argument: bytearray | int = 0) -> int:
        """The call's result; what the kernel writes back is in `argument` afterwards, also on failure."""

    def pread(self, fd: int, length: int, offset: int) -> bytes: ...

    def pwrite(self, fd: int, data: bytes, offset: int) -> int: ...

    def map(self, fd: int, length: int, offset: int, *, writable: bool) -> Mapping:
        """Shared memory of the descriptor. Raises `MappingError`."""


class LinuxKernel:
    """The kernel that this process runs on."""

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def ioctl(self, fd: int, request: int, argument: bytearray | int = 0) -> int:
        return fcntl.ioctl(fd, request, argument)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def map(self, fd: int, length: int, offset: int, *, writable: bool) -> Mapping:
        return Mapping(fd, length, offset, writable)


LINUX = LinuxKernel()


class Descriptor:
    """A descriptor with its owner: closed once, and its calls explained."""

    def __init__(self, kernel: Kernel, fd: int, name: str) -> None:
        self.kernel = kernel
        self.name = name
        self._fd = fd

    @property
    def fd(self) -> int:
        """The number. Raises `VfioError` after `close`."""
        if self._fd < 0:
            raise VfioError(f"{self.name} is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def call(self, request: int, argument: bytearray | int, what: str, remedy: str | None = None) -> int:
        """An ioctl. Raises `VfioError`: `what` failed, why, and the way out."""
        try:
            return self.kernel.ioctl(self.fd, request, argument)
        except OSError as error:
            raise failure(f"{self.name}: {what}", error, remedy) from None

    def close(self) -> None:
        """Close it; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self.kernel.close(fd)


def failure(what: str, error: OSError, remedy: str | None = None) -> VfioError:
    """The error that says what an `OSError` stopped."""
    number = error.errno or errno.EIO
    return VfioError(f"{what}: {os.strerror(number)}", errno=number, remedy=remedy)
