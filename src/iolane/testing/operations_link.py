"""A link between two iolane processes that a test can cut, stall, and cut at a certain word."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from iolane.operations.migration.uri import Place

PIECE = 1 << 16


class CuttableLink:
    """Passes on what comes to one unix socket to another, while it may. A context manager.

    Attributes:
        place: where sources connect.
        passed: bytes that went over, both ways.
    """

    def __init__(self, path: Path, target: Path) -> None:
        self.place = Place(path=path)
        self.passed = 0
        self._target = target
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._whole = True
        self._closed = False
        self._flows = threading.Event()
        self._flows.set()
        self._word = b""
        self._cut_after: int | None = None

    def __enter__(self) -> Self:
        self._listener = self.place.listen()
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def cut(self) -> None:
        """Every connection ends, and new ones do at once."""
        with self._lock:
            self._whole = False
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._flows.set()

    def stall(self) -> None:
        """Nothing goes over any more, and nothing ends."""
        self._flows.clear()

    def mend(self) -> None:
        """New connections go over again."""
        with self._lock:
            self._whole, self._word, self._cut_after = True, b"", None
        self._flows.set()

    def stop_at(self, word: bytes) -> None:
        """Cut it just before something with this in it goes over."""
        self._word = word

    def cut_after(self, count: int) -> None:
        """Cut it once so many more bytes have gone over."""
        self._cut_after = self.passed + count

    def _start(self, work: object, *arguments: socket.socket) -> None:
        assert callable(work)
        thread = threading.Thread(target=work, args=arguments, name="link", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            there = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with self._lock:
                try:
                    if not self._whole:
                        raise ConnectionRefusedError
                    there.connect(str(self._target))
                except OSError:
                    here.close()
                    there.close()
                    continue
                self._open |= {here, there}
            self._start(self._pass, here, there)
            self._start(self._pass, there, here)

    def _pass(self, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := here.recv(PIECE):
                if self._word and self._word in piece:
                    self.cut()
                self._flows.wait()
                with self._lock:
                    whole = self._whole
                if not whole:
                    break
                there.sendall(piece)
                self.passed += len(piece)
                if self._cut_after is not None and self.passed >= self._cut_after:
                    self.cut()
        with contextlib.suppress(OSError):
            there.shutdown(socket.SHUT_WR)
        with self._lock:
            if here in self._open:
                self._open.discard(here)
            else:
                return
        # both directions are over when both ends have been let go
        with contextlib.suppress(OSError):
            here.shutdown(socket.SHUT_RD)
