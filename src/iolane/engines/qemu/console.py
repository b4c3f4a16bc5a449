"""A guest's console: read by a thread of its own, kept in a log file, readable and writable."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from iolane.errors import IolaneError

KEPT = 1 << 20
"""How many of the last bytes stay in memory; the log file has all."""
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[@-Z\\^_c])")
_GATHER = struct.pack("ll", 0, 10_000)
_FOREVER = struct.pack("ll", 0, 0)


@dataclass(eq=False)
class _Watcher:
    listener: Callable[[bytes], object] | None
    at_end: Callable[[], object] | None


class Console:
    """The host's end of a serial console."""

    def __init__(self, port: socket.socket, log: Path) -> None:
        self._port = port
        port.setblocking(True)
        self.log = log
        self._file = log.open("wb")
        self._kept = bytearray()
        self._dropped = 0
        self._changed = threading.Condition()
        self._ended = False
        self._watchers: list[_Watcher] = []
        self._attached: Callable[[], None] | None = None
        self._at_end: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._read, name=f"console {log.name}", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Types `data`."""
        self._port.sendall(data)

    def type(self, data: bytes) -> int:
        """Types as much of `data` as the guest takes now, without waiting: how many bytes."""
        try:
            return self._port.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def fileno(self) -> int:
        """For poll(2) alone: writable when `type` has room."""
        return self._port.fileno()

    def watch(
        self,
        listener: Callable[[bytes], object] | None,
        at_end: Callable[[], object] | None = None,
        *,
        replay: bool = True,
    ) -> Callable[[], None]:
        """`listener` gets what the console has shown (unless not to `replay`), then all it shows, in the
        console's thread: who is slow keeps the guest's output waiting. `at_end` is called when the machine
        has ended, at once if it has. Any number may watch; returns the call that ends it.
        """
        watcher = _Watcher(listener, at_end)
        with self._changed:
            self._watchers.append(watcher)
            if listener is not None and self._kept and replay:
                listener(bytes(self._kept))
            if self._ended and at_end is not None:
                at_end()

        def end() -> None:
            with self._changed:
                if watcher in self._watchers:
                    self._watchers.remove(watcher)

        return end

    def attach(self, listener: Callable[[bytes], None] | None, *, replay: bool = True) -> None:
        """Watches for one who needs no more than one listener; None ends it."""
        if self._attached is not None:
            self._attached()
        self._attached = None if listener is None else self.watch(listener, replay=replay)

    def on_end(self, call: Callable[[], object] | None) -> None:
        """`call` is called when the machine has ended, at once if it has; None takes it back."""
        if self._at_end is not None:
            self._at_end()
        self._at_end = None if call is None else self.watch(None, call)

    def text(self) -> str:
        """What the console has shown (the last of it, when it is much)."""
        with self._changed:
            return self._kept.decode(errors="replace")

    def tail(self, lines: int = 25) -> str:
        """The last lines."""
        return "\n".join([line for line in self._lines() if line][-lines:])

    def lines_with(self, pattern: str) -> list[str]:
        """The lines in which the regular expression is found."""
        compiled = re.compile(pattern)
        return [line for line in self._lines() if compiled.search(line)]

    def _lines(self) -> list[str]:
        return [line.rstrip() for line in _ESCAPES.sub("", self.text()).replace("\r", "\n").split("\n")]

    def wait_end(self, timeout: float) -> bool:
        """Waits until the machine's end has been read from the console."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, timeout)

    def wait_for(self, pattern: str, timeout: float = 60.0, start: int = 0) -> int:
        """Waits for the regular expression behind position `start`; returns the position after it."""
        compiled = re.compile(pattern.encode(), re.MULTILINE)
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                match = compiled.search(self._kept, max(0, start - self._dropped))
                if match is not None:
                    return match.end() + self._dropped
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    why = "the machine has ended" if self._ended else f"not within {timeout:g} s"
                    raise IolaneError(f"the console did not show {pattern!r}: {why}")
                self._changed.wait(left)

    def close(self) -> None:
        """Ends the thread; the log stays."""
        self._port.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._port.close()

    def _read(self) -> None:
        with self._file:
            while data := self._gather():
                self._file.write(data)
                self._file.flush()
                with self._changed:
                    self._kept += data
                    if (extra := len(self._kept) - KEPT) > 0:
                        del self._kept[:extra]
                        self._dropped += extra
                    listeners = [each.listener for each in self._watchers if each.listener is not None]
                    self._changed.notify_all()
                for listener in listeners:
                    listener(data)
        with self._changed:
            self._ended = True
            for each in self._watchers:
                if each.at_end is not None:
                    each.at_end()
            self._changed.notify_all()

    def _gather(self) -> bytes:
        """QEMU passes a console on byte by byte: wait for one, then let the kernel gather for up to 10 ms."""
        try:
            self._port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _FOREVER)
            if not self._port.recv(1, socket.MSG_PEEK):
                return b""
            self._port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _GATHER)
            return self._port.recv(4096, socket.MSG_WAITALL)
        except OSError:
            return b""
