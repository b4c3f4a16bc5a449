"""The private cache: trees that are made once, published by one atomic rename, and found at once later."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from iolane.errors import IolaneError

Report = Callable[[str], None]
"""Told, in words for people, what takes time."""


def report_to_stderr(message: str) -> None:
    """The default `Report`: one line on standard error."""
    print(message, file=sys.stderr, flush=True)


def cache_directory() -> Path:
    """$IOLANE_CACHE, else $XDG_CACHE_HOME/iolane, else ~/.cache/iolane."""
    if chosen := os.environ.get("IOLANE_CACHE"):
        return Path(chosen).absolute()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).absolute() / "iolane"
    return Path.home() / ".cache" / "iolane"


class Cache:
    """A folder of published trees and files. Whoever makes an entry holds its lock; a maker that died leaves
    a scratch folder, which the next maker removes."""

    def __init__(self, root: Path | None = None, report: Report = report_to_stderr) -> None:
        self.root = root if root is not None else cache_directory()
        self.report = report
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise IolaneError(
                f"the cache folder {self.root} cannot be made: {error.strerror}",
                remedy="set IOLANE_CACHE to a folder you may write",
            ) from error

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Holds the lock `name` against other processes and threads; says so when it has to wait."""
        locks = self.root / "locks"
        locks.mkdir(exist_ok=True)
        fd = os.open(locks / name.replace("/", "-"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.report(f"waiting: another iolane is preparing {name}")
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def tree(self, name: str, make: Callable[[Path], None]) -> Path:
        """The folder `name`, made by `make(scratch folder)` if it is not there yet."""
        path = self.root / name
        if path.exists():
            return path
        with self.locked(name):
            if not path.exists():
                self._publish(path, make)
        return path

    def replace(self, name: str, make: Callable[[Path], None]) -> Path:
        """Makes the folder `name` anew, whether or not it exists."""
        path = self.root / name
        with self.locked(name):
            if path.exists():
                shutil.rmtree(path)
            self._publish(path, make)
        return path

    def file(self, name: str, make: Callable[[Path], None]) -> Path:
        """The file `name`, made by `make(scratch path)` if it is not there yet."""
        return self.tree(name, make)

    def _publish(self, path: Path, make: Callable[[Path], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".making-{path.name}-"
        for left in path.parent.glob(prefix + "*"):
            shutil.rmtree(left, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
        os.chmod(scratch, 0o755)
        try:
            inner = scratch / "it"
            make(inner)
            os.rename(inner, path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
