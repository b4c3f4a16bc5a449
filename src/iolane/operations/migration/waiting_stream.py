"""The destination's end of QEMU's stream, from when its token is told until QEMU takes it."""

from __future__ import annotations

import hmac
import socket
import threading


class WaitingStream:
    """Filled by a thread that accepts connections, taken by another. Only the first that shows the token
    counts.

    Args:
        token: what the source was told.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._taken = False

    def fill(self, token: str, connection: socket.socket) -> bool:
        """Whether the connection is wanted; else it stays the caller's."""
        with self._lock:
            if self._taken or self._connection is not None:
                return False
            if not hmac.compare_digest(token.encode(), self.token.encode()):
                return False
            self._connection = connection
            return True

    def take(self) -> socket.socket | None:
        """The connection, once; it is the caller's from here."""
        with self._lock:
            self._taken = True
            connection, self._connection = self._connection, None
            return connection

    def close(self) -> None:
        """Nothing is wanted any more."""
        connection = self.take()
        if connection is not None:
            connection.close()
