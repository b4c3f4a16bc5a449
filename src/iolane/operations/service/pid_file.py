"""A file with the number of the process that serves, locked by it for as long as it lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType

from iolane.errors import IolaneError

LONGEST = 32
"""Bytes that are read of a file of another; a process's number is shorter."""


class PidFile:
    """Held while it is entered. The lock says whether somebody serves: a number that a dead process left
    does not hinder, and a number that another process got since does not either.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1

    def __enter__(self) -> PidFile:
        try:
            self._file = self._locked()
        except OSError as error:
            remedy = f"mkdir -p {self.path.parent}" if isinstance(error, FileNotFoundError) else None
            raise IolaneError(
                f"pid file {self.path}: {(error.strerror or str(error)).lower()}", remedy=remedy
            ) from None
        os.fchmod(self._file, 0o644)  # who serves is no secret, whatever the umask is
        os.truncate(self._file, 0)
        os.pwrite(self._file, b"%d\n" % os.getpid(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        descriptor, self._file = self._file, -1
        with contextlib.suppress(OSError):
            if self._is_at_path(descriptor):
                self.path.unlink()
        os.close(descriptor)  # the lock goes last: whoever waits for it finds that the file is another

    def _locked(self) -> int:
        """Its descriptor with the lock; a file that its holder removed meanwhile is not the one."""
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(self.path, flags, 0o644)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise IolaneError(f"pid file {self.path} exists and is no file")
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_at_path(descriptor):
                    return descriptor
            except BlockingIOError:
                holder = _number(descriptor)
                os.close(descriptor)
                who = "another process" if holder is None else f"process {holder}"
                raise IolaneError(
                    f"pid file {self.path}: {who} serves already",
                    remedy="stop it, or name another pid file",
                ) from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _is_at_path(self, descriptor: int) -> bool:
        try:
            there, here = self.path.lstat(), os.fstat(descriptor)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _number(descriptor: int) -> int | None:
    text = os.pread(descriptor, LONGEST, 0).strip()
    return int(text) if text.isdigit() else None
