"""The host's sysfs, procfs and device files, under a root: "/", or the folder of a recorded host."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from iolane.errors import IolaneError

WRITE_DEADLINE = 30.0
"""Seconds a write may take: unbinding waits for the driver, and a driver may wait for its device for ever."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05


class HostError(IolaneError):
    """What the kernel refused, or did not finish in time."""

    def __init__(self, message: str, *, remedy: str | None = None, number: int = 0) -> None:
        super().__init__(message, remedy=remedy)
        self.number = number
        """errno, or 0."""


class Host:
    """A machine's files. Paths are given as on the machine, with or without the leading slash.

    Readers answer None (or nothing) for what isn't there or can't be read: a device may vanish at any time.
    """

    def __init__(self, root: Path | str = "/") -> None:
        self.root = Path(root)

    @property
    def is_live(self) -> bool:
        """Whether this is the machine we run on, and no recorded one."""
        return self.root == Path("/")

    def path(self, path: str) -> Path:
        """Where `path` of the machine lies in our file system."""
        return self.root / path.lstrip("/")

    def read(self, path: str) -> str | None:
        """A file's text without surrounding blanks."""
        content = self.read_bytes(path)
        return None if content is None else content.decode(errors="replace").strip()

    def read_bytes(self, path: str) -> bytes | None:
        """A file's content."""
        try:
            return self.path(path).read_bytes()
        except (OSError, ValueError):
            return None

    def read_int(self, path: str, default: int | None = None) -> int | None:
        """A number, decimal or with 0x."""
        try:
            return int(self.read(path) or "", 0)
        except ValueError:
            return default

    def exists(self, path: str) -> bool:
        """Whether there is such a file, folder or link with a target."""
        return self.path(path).exists()

    def names(self, path: str) -> list[str]:
        """What is in a folder, sorted."""
        try:
            return sorted(os.listdir(self.path(path)))
        except OSError:
            return []

    def link(self, path: str) -> str | None:
        """The last part of what a symbolic link says: a device's `driver` link ends in the driver's name."""
        try:
            return os.path.basename(os.readlink(self.path(path)))
        except OSError:
            return None

    def real(self, path: str) -> str | None:
        """The path on the machine that `path` leads to, all links resolved; None where it leads nowhere."""
        try:
            resolved = self.path(path).resolve(strict=True)
            return "/" + str(resolved.relative_to(self.root.resolve())).lstrip("/.")
        except (OSError, ValueError, RuntimeError):
            return None

    def write(self, path: str, text: str, *, deadline: float = WRITE_DEADLINE) -> None:
        """Write one sysfs attribute, in one write(2), as sysfs wants it.

        Raises:
            HostError: the kernel refused it, or has not finished after `deadline` seconds. Then it goes on by
                itself: a write that waits for a driver can't be called back.
        """
        outcome: list[OSError | None] = []
        writer = threading.Thread(
            target=lambda: outcome.append(_write(self.path(path), text)), name="sysfs write", daemon=True
        )
        writer.start()
        writer.join(deadline)
        if not outcome:
            raise HostError(
                f"{path}: the kernel has not finished writing {text.strip()!r} after {deadline:g} s",
                remedy="its driver waits for the device or for a process that uses it; see dmesg",
                number=errno.ETIMEDOUT,
            )
        if (error := outcome[0]) is not None:
            raise HostError(
                f"{path}: writing {text.strip()!r} was refused: {(error.strerror or str(error)).lower()}",
                remedy=_remedy(error.errno or 0),
                number=error.errno or 0,
            )

    def wait(self, condition: Callable[[], bool], *, what: str, deadline: float = 10.0) -> None:
        """Return once `condition` holds; asked again and again, since sysfs attributes announce nothing.

        Raises:
            HostError: `what` has not come true within `deadline` seconds.
        """
        end = time.monotonic() + deadline
        pause = _FIRST_PAUSE
        while not condition():
            if time.monotonic() >= end:
                raise HostError(f"{what}: not so after {deadline:g} s", number=errno.ETIMEDOUT)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _write(path: Path, text: str) -> OSError | None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        return error
    return None


def _remedy(number: int) -> str | None:
    if number in (errno.EACCES, errno.EPERM):
        return "only root may; if you are, the kernel may be locked down or sysfs read-only"
    if number == errno.EROFS:
        return "sysfs is mounted read-only here, as in a container; do it on the host"
    if number == errno.EBUSY:
        return "something uses the device"
    return None
