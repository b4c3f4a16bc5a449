"""The socket that clients connect to."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from iolane.errors import IolaneError

LONGEST_PATH = 107
"""Bytes in sockaddr_un.sun_path without its NUL."""
BACKLOG = 8


class SocketError(IolaneError):
    """The socket can't be made where it was asked for."""


class Listener:
    """A listening Unix socket with a file of ours; a stale file is replaced, one that is in use is not.

    Args:
        path: where.
        mode: who may connect; by default the owner alone.
    """

    def __init__(self, path: Path, *, mode: int = 0o600) -> None:
        self.path = path
        if len(os.fsencode(path)) > LONGEST_PATH:
            raise SocketError(
                f"socket path {path} is longer than {LONGEST_PATH} bytes", remedy="choose a shorter one"
            )
        _remove_stale(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self.socket.bind(os.fspath(path))
            path.chmod(mode)  # before listen: until then nobody can connect
            self._identity = _identity(path)
            self.socket.listen(BACKLOG)
        except OSError as error:
            self.socket.close()
            raise _explained(path, error) from None

    def accept(self) -> socket.socket | None:
        """The next client, or None once `stop` was called."""
        while True:
            try:
                connection, _ = self.socket.accept()
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.EBADF):
                    return None
                raise
            return connection

    def stop(self) -> None:
        """Wake up whoever waits in `accept`."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Remove the file, if it is still ours."""
        self.socket.close()
        with suppress(OSError):
            if _identity(self.path) == self._identity:
                self.path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _remove_stale(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise _explained(path, error) from None
    if not stat.S_ISSOCK(status.st_mode):
        raise SocketError(f"{path} exists and is no socket", remedy="choose another path, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            pass
        except FileNotFoundError:
            return
        except BlockingIOError:
            raise _in_use(path) from None
        except OSError as error:
            raise _explained(path, error) from None
        else:
            raise _in_use(path)
    with suppress(FileNotFoundError):
        try:
            path.unlink()
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise _explained(path, error) from None


def _in_use(path: Path) -> SocketError:
    return SocketError(
        f"socket {path} is in use by another process", remedy="choose another path, or stop that process"
    )


def _explained(path: Path, error: OSError) -> SocketError:
    if error.errno == errno.ENOENT:
        return SocketError(f"socket {path}: its folder does not exist", remedy=f"mkdir -p {path.parent}")
    if error.errno == errno.EADDRINUSE:
        return _in_use(path)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return SocketError(
            f"no permission to make socket {path}",
            remedy="choose a folder that you may write, or change user",
        )
    return SocketError(f"socket {path}: {error.strerror}")
