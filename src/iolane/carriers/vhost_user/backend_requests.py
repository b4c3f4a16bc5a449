"""Requests of the back end's to the front end ("Back-end communication")."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress

from iolane.carriers.vhost_user.protocol import HEADER, VERSION, BackendRequest
from iolane.carriers.vhost_user.rejection import RefusedError, Rejection, Statistics


class BackendRequests:
    """The channel that SET_BACKEND_REQ_FD brings. It sends no request that is answered, and reads nothing.

    While the device is suspended nothing may be sent: a change of the configuration is told of when the
    first ring starts.
    """

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None
        self._suspended = True
        self._owed = False

    def use(self, fd: int) -> None:
        """Take the channel's descriptor; an earlier one is closed."""
        try:
            channel = socket.socket(fileno=fd)
        except OSError as error:
            os.close(fd)
            raise RefusedError(Rejection.FD_KIND, f"no socket: {error.strerror}") from None
        if channel.family != socket.AF_UNIX or channel.type != socket.SOCK_STREAM:
            channel.close()
            raise RefusedError(Rejection.FD_KIND, "no Unix stream socket")
        with self._lock:
            self._close()
            self._channel = channel

    def config_changed(self) -> None:
        """Tell of another configuration, or do so later. From any thread."""
        with self._lock:
            if self._suspended or self._channel is None:
                self._owed = True
            else:
                self._send(BackendRequest.CONFIG_CHANGE_MSG)

    def suspend(self) -> None:
        """No ring runs: hold back what is to be sent."""
        with self._lock:
            self._suspended = True

    def resume(self) -> None:
        """A ring runs: send what was held back."""
        with self._lock:
            self._suspended = False
            if self._owed and self._channel is not None:
                self._owed = False
                self._send(BackendRequest.CONFIG_CHANGE_MSG)

    def _send(self, request: BackendRequest) -> None:
        """A front end that does not read has as many of these before it as its socket holds: another would
        tell it nothing new.
        """
        assert self._channel is not None
        with suppress(OSError):
            self._channel.send(HEADER.pack(request, VERSION, 0), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            self._statistics.config_changes += 1

    def _close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def close(self) -> None:
        """Close the channel."""
        with self._lock:
            self._close()
