"""Streams over file descriptors."""

from __future__ import annotations

import os
import select
from pathlib import Path

from iolane.backends.poller import HUNG_UP, READABLE, WRITABLE, Poller
from iolane.backends.stream.base import Notify, StreamBackend
from iolane.errors import IolaneError

CHUNK = 4096
"""Bytes asked of the host at a time, unless `chunk` says otherwise; the rest of them waits in the stream."""
KEPT_AFTER_LOSS = 1 << 20
"""Input still read from a peer that has closed its reading side."""


class DescriptorStream(StreamBackend):
    """Reads one descriptor and writes another, which may be the same; -1 stands for none.

    Derived classes say where descriptors come from (`open_descriptors`) and what a lost peer means (`_lost`).
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.chunk = CHUNK
        self._in = -1
        self._out = -1
        self._lent = False
        self._input = bytearray()
        self._wanted: dict[int, int] = {}
        self._poller: Poller | None = None

    # What the device calls.

    def start(self, notify: Notify) -> None:
        """As in the base class."""
        self.stop()
        super().start(notify)
        self._poller = Poller(f"iolane-{self.name}")
        self._begin()

    def stop(self) -> None:
        """As in the base class."""
        super().stop()
        poller, self._poller = self._poller, None
        self._wanted.clear()
        if poller is not None:
            poller.close()

    def service(self) -> None:
        """As in the base class: what was announced is asked for anew when the device pulls."""
        self._wanted.clear()
        if self._in >= 0 and not self._lent and _hung_up(self._in):
            self._read_the_rest()

    def read(self, limit: int) -> bytes:
        """As in the base class."""
        if not limit and self._in >= 0:
            self._want(self._in, HUNG_UP)
        if len(self._input) < limit and self._in >= 0:
            self._fill()
        data = bytes(self._input[:limit])
        del self._input[:limit]
        self.bytes_read += len(data)
        if len(data) < limit and self._in >= 0:
            self._want(self._in, READABLE)
        return data

    def write(self, data: bytes) -> int:
        """As in the base class."""
        if not self.connected or self._out < 0:
            self.bytes_dropped += len(data)
            return len(data)
        taken = 0
        while taken < len(data):
            try:
                count = os.write(self._out, data[taken:])
            except BlockingIOError:
                self._want(self._out, WRITABLE)
                break
            except OSError:
                return taken + self._write_failed(data[taken:])
            taken += count
            self.bytes_written += count
        return taken

    def hang_up(self) -> None:
        """Throw the peer out; what it sent and nobody has read is forgotten."""
        self.forget_input()
        if self._in >= 0 or self._out >= 0:
            self._lost()

    def forget_input(self) -> None:
        """What was sent before, and not read, is of no interest any more."""
        self._input.clear()

    def lend(self) -> bytes:
        """Somebody else reads and writes from now on, and calls `hang_up` when the peer has gone.

        Returns:
            What was read and nobody has taken.
        """
        self._lent = True
        data = bytes(self._input)
        self.forget_input()
        return data

    @property
    def descriptor(self) -> int:
        """What is written to; -1 without a peer."""
        return self._out

    def tell_when_ready(self, events: int) -> None:
        """`notify` once when there is something to read (READABLE), or room to write (WRITABLE)."""
        if self._out >= 0:
            self._want(self._out, events)

    def close(self) -> None:
        """As in the base class."""
        self.stop()
        self._release()

    # What derived classes may replace.

    def _begin(self) -> None:
        """Called by `start`: the device pulls once, which arms what it can't have at once."""
        self._notify()

    def _lost(self) -> None:
        """The peer is gone; descriptors are released."""
        self._release()

    def _write_failed(self, data: bytes) -> int:
        """The peer closed its reading side: what it sent is still read, the output has nowhere to go."""
        self._read_the_rest()
        self.bytes_dropped += len(data)
        if self._out >= 0:
            self._lost()
        return len(data)

    # Helpers.

    def _read_the_rest(self) -> None:
        """The peer has left: read what it sent before, up to the end, which is its loss."""
        while self._in >= 0 and len(self._input) < KEPT_AFTER_LOSS and self._fill():
            pass

    def _fill(self) -> bool:
        """Read once from the host; False when nothing came."""
        try:
            data = os.read(self._in, self.chunk)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._lost()
            return False
        self._input += data
        return True

    def _want(self, fd: int, events: int) -> None:
        if self._poller is None:
            return
        wanted = self._wanted.get(fd, 0) | events
        if wanted != self._wanted.get(fd):
            self._wanted[fd] = wanted
            self._poller.arm(fd, wanted, self._notify)

    def _forget(self, fd: int) -> None:
        self._wanted.pop(fd, None)
        if self._poller is not None:
            self._poller.forget(fd)

    def _release(self) -> None:
        for fd in {self._in, self._out} - {-1}:
            self._forget(fd)
            os.close(fd)
        self._in = self._out = -1


class DescriptorPair(DescriptorStream):
    """Descriptors that the caller opened: input from one, output to the other or to the same one.

    They are duplicated, so the caller keeps its own; blocking mode is restored by `close`.
    """

    def __init__(self, input_fd: int, output_fd: int | None = None) -> None:
        output = input_fd if output_fd is None else output_fd
        super().__init__(f"fd:{input_fd}" if output_fd is None else f"fd:{input_fd}:{output}")
        try:
            self._in = os.dup(input_fd)
            self._out = self._in if output == input_fd else os.dup(output)
        except OSError as error:
            self._release()
            raise IolaneError(f"{self.name}: {(error.strerror or str(error)).lower()}") from error
        self._blocking = {fd for fd in {self._in, self._out} if os.get_blocking(fd)}
        for fd in self._blocking:
            os.set_blocking(fd, False)
        self.connections = 1

    @property
    def connected(self) -> bool:
        """Until the output's reader, or the only descriptor's peer, has gone."""
        return self._out >= 0

    def _lost(self) -> None:
        # The end of a separate input (a file, say) is not the end of the output.
        if self._in != self._out and self._in >= 0:
            fd, self._in = self._in, -1
            self._restore(fd)
            self._forget(fd)
            os.close(fd)
        else:
            self._release()

    def _write_failed(self, data: bytes) -> int:
        self.errors += 1
        self.bytes_dropped += len(data)
        if self._out == self._in:
            return super()._write_failed(b"") + len(data)
        fd, self._out = self._out, -1
        self._restore(fd)
        self._forget(fd)
        os.close(fd)
        return len(data)

    def _restore(self, fd: int) -> None:
        if fd in self._blocking:
            self._blocking.discard(fd)
            os.set_blocking(fd, True)

    def _release(self) -> None:
        for fd in {self._in, self._out} - {-1}:
            self._restore(fd)
        super()._release()


class FileStream(DescriptorStream):
    """Output appended to a file; there is no input. What the file can't take is dropped and counted."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"file:{path}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._out = os.open(path, flags, 0o644)
        except OSError as error:
            raise IolaneError(f"{path}: {(error.strerror or str(error)).lower()}") from error
        self.connections = 1

    @property
    def connected(self) -> bool:
        """Until it is closed."""
        return self._out >= 0

    def _write_failed(self, data: bytes) -> int:
        self.errors += 1
        self.bytes_dropped += len(data)
        return len(data)


def _hung_up(fd: int) -> bool:
    """Whether nobody is at the other end any more."""
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    return any(events & (select.POLLRDHUP | select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))
