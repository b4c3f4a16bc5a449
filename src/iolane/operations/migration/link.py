"""A connected socket that one thread reads while others write, under TLS or not.

OpenSSL's objects may be used by one thread at a time (SSL_read(3)), and a read that waits would keep writers
out: so nothing waits inside a call, and what is waited for is waited for between calls.
"""

from __future__ import annotations

import contextlib
import io
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable


class Link(io.RawIOBase):
    """Read as a raw stream; `send_all` writes.

    Args:
        connection: owned by this from here.
        send_limit: seconds for the other side to take what is sent.
    """

    def __init__(self, connection: socket.socket, send_limit: float) -> None:
        self._connection = connection
        self._send_limit = send_limit
        self._using = threading.Lock()
        self._sending = threading.Lock()
        connection.setblocking(False)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]  # narrower than any buffer
        """Wait for bytes; 0: the other side has ended. Raises OSError."""
        return self._do(lambda: self._connection.recv_into(buffer), select.POLLIN, None)

    def send_all(self, data: bytes) -> None:
        """Raises OSError: TimeoutError where the other side does not take it."""
        deadline = time.monotonic() + self._send_limit
        rest = memoryview(data)

        def send() -> int:
            return self._connection.send(rest)

        with self._sending:
            while rest:
                rest = rest[self._do(send, select.POLLOUT, deadline) :]

    def cut(self) -> None:
        """Who reads hears the end."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back; behind the reader's end."""
        self._connection.close()
        super().close()

    def _do(self, call: Callable[[], int], usual: int, deadline: float | None) -> int:
        while True:
            try:
                with self._using:
                    return call()
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN, deadline)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT, deadline)
            except BlockingIOError:
                self._wait(usual, deadline)

    def _wait(self, event: int, deadline: float | None) -> None:
        poll = select.poll()
        poll.register(self._connection.fileno(), event)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not poll.poll(left):
            raise TimeoutError("the other side takes nothing")
