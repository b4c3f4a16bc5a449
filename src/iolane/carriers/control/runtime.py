"""The runtime folder: control sockets, and a folder a run for its device sockets, all private to the user."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path
from types import TracebackType

from iolane.errors import IolaneError

CONTROL_SUFFIX = ".control"
NAME_SUFFIX = ".machine"
_RUN_PREFIX = "run-"
_PATH_LIMIT = 107
"""sun_path of sockaddr_un, without its NUL (unix(7))."""


def runtime_directory() -> Path:
    """$XDG_RUNTIME_DIR/iolane, else /tmp/iolane-UID; mode 0700; refused when it isn't ours alone."""
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session and os.access(session, os.W_OK | os.X_OK):
        path = Path(session) / "iolane"
    else:
        path = Path("/tmp") / f"iolane-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise IolaneError(f"runtime folder {path}: {(error.strerror or str(error)).lower()}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise IolaneError(
            f"runtime folder {path} is not a folder of yours alone (mode 0700)",
            remedy="remove it or set XDG_RUNTIME_DIR",
        )
    return path


def check_socket_path(path: Path) -> Path:
    """`path` if a unix socket may be there, else IolaneError (sun_path is 108 bytes long)."""
    if len(os.fsencode(path)) > _PATH_LIMIT:
        raise IolaneError(
            f"socket path {path} is longer than {_PATH_LIMIT} bytes", remedy="choose a shorter folder"
        )
    return path


def write_private(path: Path, data: bytes) -> None:
    """A new file that only this user reads. Raises IolaneError, also when there is one already."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
    except OSError as error:
        raise IolaneError(f"{path}: {(error.strerror or str(error)).lower()}") from error


def is_served(path: Path) -> bool:
    """Whether somebody listens on the unix socket at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is EAGAIN: served, but busy
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


def remove_stale() -> list[Path]:
    """Remove what killed processes left in the runtime folder; returns the control sockets that are alive."""
    directory = runtime_directory()
    alive = []
    for path in sorted(directory.iterdir()):
        if path.suffix == CONTROL_SUFFIX:
            if is_served(path):
                alive.append(path)
            else:
                path.unlink(missing_ok=True)
        elif path.name.startswith(_RUN_PREFIX) and not _locked(path / "lock"):
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix == NAME_SUFFIX and (claim := _claim(path)) is not None:
            path.unlink(missing_ok=True)
            os.close(claim)
    return alive


def _claim(path: Path) -> int | None:
    """A descriptor that holds the lock file at `path`; None when a living process holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # who held it before has removed the file in between


def _locked(path: Path) -> bool:
    """Whether a living process holds the lock file; a missing one is being made just now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


class RunDirectory:
    """A private folder for one run's sockets and files; after kill -9 the next run removes it."""

    def __init__(self) -> None:
        remove_stale()
        self.path = Path(tempfile.mkdtemp(prefix=_RUN_PREFIX, dir=runtime_directory()))
        unlocked = self.path / "unlocked"
        self._lock = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unlocked.rename(self.path / "lock")  # seen by a sweep only once it is held

    def close(self) -> None:
        """Remove the folder and all in it."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


class MachineName:
    """A name that no other running machine of the user has, from the beginning to `close`.

    Args:
        wanted: the name; None: `vm0`, or the next one that is free.

    Raises:
        IolaneError: a running machine has that name.
    """

    def __init__(self, wanted: str | None) -> None:
        directory = runtime_directory()
        names = (wanted,) if wanted is not None else (f"vm{number}" for number in itertools.count())
        for self.name in names:
            self._path = directory / f"{self.name}{NAME_SUFFIX}"
            claim = _claim(self._path)
            if claim is not None:
                self._descriptor = claim
                return
        raise IolaneError(
            f"a machine called '{wanted}' runs already",
            remedy="see `iolane ps`, or choose another name with --name",
        )

    def close(self) -> None:
        """The name is free again."""
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> MachineName:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
