"""A TCP connection out of a guest that sends back what comes (`nc HOST PORT -e cat`), and its end here."""

from __future__ import annotations

import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

CHUNK = 4096
PIECES = 64
"""That come back before a connection counts as going on."""


class Echoed:
    """Sends numbers without end, one piece when the other has come back, and compares them."""

    def __init__(self, host: str, port: int) -> None:
        self._listener = socket.create_server((host, port))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._changed = threading.Condition()
        self.back = 0
        """Bytes that came back as they were sent."""
        self.problem = ""

    def goes_on(self, seconds: float = 200.0) -> bool:
        """Whether so many more pieces come back."""
        with self._changed:
            aim, deadline = self.back + PIECES * CHUNK, time.monotonic() + seconds
            while self.back < aim and not self.problem:
                if not self._changed.wait(deadline - time.monotonic()):
                    return False
            return not self.problem

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._listener.close()
        self._thread.join(60)

    def _talk(self) -> None:
        try:
            connection, _ = self._listener.accept()
            connection.settimeout(200)
            with connection, connection.makefile("rb") as stream:
                while not self._stop.is_set():
                    words = range(self.back // 8, (self.back + CHUNK) // 8)
                    piece = struct.pack(f"<{CHUNK // 8}Q", *words)
                    connection.sendall(piece)
                    same = stream.read(CHUNK) == piece
                    with self._changed:
                        if same:
                            self.back += CHUNK
                        else:
                            self.problem = f"other bytes came back than were sent, after {self.back}"
                        self._changed.notify_all()
                    if not same:
                        return
        except OSError as error:
            with self._changed:
                self.problem = str(error)
                self._changed.notify_all()
