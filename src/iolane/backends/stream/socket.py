"""A unix socket at the other end of the line, listening or connecting, one peer at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from pathlib import Path

from iolane.backends.poller import READABLE
from iolane.backends.stream.descriptor import DescriptorStream
from iolane.errors import IolaneError

RETRY_SECONDS = 0.5
"""Time between attempts to connect to a peer that is not there."""


class SocketStream(DescriptorStream):
    """A unix stream socket. A peer that leaves may come back, or another one: the line is up again.

    Args:
        path: the socket's path.
        listen: wait for peers there (the path is made, and removed by `close`); otherwise connect to it,
            again and again until somebody listens.
    """

    def __init__(self, path: Path, *, listen: bool = True) -> None:
        super().__init__(f"{'listen' if listen else 'unix'}:{path}")
        self.path = path
        self._listener = _listen(path) if listen else None
        if not listen:
            self._connect()

    @property
    def connected(self) -> bool:
        """Whether a peer is there."""
        return self._out >= 0

    def service(self) -> None:
        """Also takes the next peer."""
        super().service()
        if self._out < 0:
            if self._listener is not None:
                self._accept(self._listener)
            else:
                self._connect()
        self._await_peer()

    def close(self) -> None:
        """Also removes the path of a listening socket."""
        super().close()
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
            listener.close()

    def _begin(self) -> None:
        self._await_peer()
        super()._begin()

    def _lost(self) -> None:
        super()._lost()
        self._await_peer()

    def _await_peer(self) -> None:
        if self._poller is None or self._out >= 0:
            return
        if self._listener is not None:
            self._want(self._listener.fileno(), READABLE)
        else:
            self._poller.call_at(time.monotonic() + RETRY_SECONDS, self._notify)

    def _accept(self, listener: socket.socket) -> None:
        try:
            peer, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError:  # the peer left again, or no descriptor is free: the next one is awaited
            self.errors += 1
            return
        self._use(peer)

    def _connect(self) -> None:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            peer.connect(os.fspath(self.path))
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            peer.close()
        except OSError:
            self.errors += 1
            peer.close()
        else:
            self._use(peer)

    def _use(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        self._in = self._out = peer.detach()
        self.connections += 1


def _listen(path: Path) -> socket.socket:
    """A listening socket; one that a dead process left behind is replaced, one in use is an error."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _bind(listener, path)
        listener.listen(1)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise IolaneError(f"{path} is in use", remedy="choose another path") from error
        raise IolaneError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    return listener


def _bind(listener: socket.socket, path: Path) -> None:
    try:
        listener.bind(os.fspath(path))
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _is_dead(path):
            raise
        path.unlink()
        listener.bind(os.fspath(path))


def _is_dead(path: Path) -> bool:
    """Whether `path` is a socket on which nobody listens."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
