"""A lock on an image that is taken later than the image is opened, and given back while it stays open."""

from __future__ import annotations

import os
from pathlib import Path

from iolane.backends import _linux
from iolane.errors import IolaneError


class ImageLock:
    """Keeps everybody else off an image from `acquire` to `release`. Readers share it.

    Args:
        path: the image.
        exclusive: nobody else may even read.
    """

    def __init__(self, path: Path, *, exclusive: bool) -> None:
        self.path = path
        self.exclusive = exclusive
        self._fd = -1

    @property
    def held(self) -> bool:
        """Whether the lock is ours."""
        return self._fd >= 0

    def acquire(self) -> None:
        """Take the lock. Raises IolaneError when somebody else has it."""
        if self.held:
            return
        try:
            fd = os.open(
                self.path, (os.O_RDWR if self.exclusive else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
            )
        except OSError as error:
            raise IolaneError(f"{self.path}: {(error.strerror or str(error)).lower()}") from error
        try:
            taken = _linux.lock(fd, exclusive=self.exclusive)
        except OSError as error:
            os.close(fd)
            raise IolaneError(
                f"{self.path} can't be locked: {(error.strerror or str(error)).lower()}",
                remedy="copy it to a file system with locks",
            ) from error
        if not taken:
            os.close(fd)
            raise IolaneError(
                f"{self.path} is in use by another program",
                remedy="stop it, or open the image read-only on both sides",
            )
        self._fd = fd

    def release(self) -> None:
        """Give the lock back. The second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
