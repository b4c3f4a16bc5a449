"""DMA by messages: memory that the client did not share is read and written by asking for it.

"VFIO_USER_DMA_READ", "VFIO_USER_DMA_WRITE". On the one socket, QEMU answers only when the thread that
waits for our reply has it: asking inside a handler whose reply is due would wait for itself, and is
refused at once. Elsewhere it works, and the requests that arrive before the answer are served
meanwhile. With a twin socket the restriction is gone.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable

from iolane.carriers.vfio_user.protocol import (
    DMA_ACCESS,
    HEADER,
    HEADER_SIZE,
    TYPE_COMMAND,
    TYPE_MASK,
    TYPE_REPLY,
    Command,
    HeaderFlag,
)
from iolane.carriers.vfio_user.rejection import Rejection, Statistics
from iolane.errors import IolaneError

_log = logging.getLogger("iolane.vfio_user")

TIMEOUT_S = 2.0
"""QEMU gives up a request after 5 s; whoever waits for it behind us shall hear of the fault before."""
CHUNK = 16 << 10
"""Bytes in one message: few enough that the kernel takes a message whole, whatever another thread is
sending.
"""


class MessageDmaError(IolaneError):
    """The client could not be asked, did not answer, or refused."""


class Pending:
    """A command to the client whose reply has not come."""

    def __init__(self, command: Command, address: int, count: int) -> None:
        self.command = command
        self.address = address
        self.count = count
        self.done = False
        self.data = b""
        self.failure = ""

    def fail(self, why: str) -> None:
        self.failure = why
        self.done = True

    def complete(self, flags: int, error: int, payload: bytes) -> bool:
        """Take the reply; False if it does not fit what was asked."""
        if flags & HeaderFlag.ERROR:
            self.fail(f"the client answered errno {error}")
            return True
        wanted = DMA_ACCESS.size + (self.count if self.command is Command.DMA_READ else 0)
        # The specification's table gives the count of a DMA_WRITE reply four bytes, libvfio-user and QEMU
        # eight.
        fits = len(payload) == wanted or (self.command is Command.DMA_WRITE and len(payload) == wanted - 4)
        if fits and int.from_bytes(payload[:8], "little") == self.address:
            fits = int.from_bytes(payload[8:16], "little") == self.count
        else:
            fits = False
        if fits:
            self.data = payload[DMA_ACCESS.size :]
            self.done = True
        else:
            self.fail("the client's reply does not fit the request")
        return fits


class MessageDma:
    """The `indirect` of a DMA space while a client is connected.

    Args:
        connection: the main socket; messages of one `sendall` each, under `send_lock`.
        lock: the device's lock; released while a thread other than the connection's waits.
        serve: handles messages on the connection's thread until the given command has its reply.
        reply_due: whether the connection's thread is inside a handler whose reply is still to be sent.
    """

    def __init__(
        self,
        connection: socket.socket,
        send_lock: threading.Lock,
        lock: threading.RLock,
        statistics: Statistics,
        *,
        serve: Callable[[Pending], None],
        reply_due: Callable[[], bool],
    ) -> None:
        self.thread = threading.get_ident()
        self.chunk = CHUNK
        self._socket = connection
        self._send_lock = send_lock
        self._statistics = statistics
        self._serve = serve
        self._reply_due = reply_due
        self._arrived = threading.Condition(lock)
        self._pending: dict[int, Pending] = {}
        self._next_id = 0
        self._closed = False
        self._warned = False
        self._twin: socket.socket | None = None

    def use_twin(self, twin: socket.socket) -> None:
        """Send commands on a socket of their own ("twin_socket")."""
        twin.settimeout(TIMEOUT_S)
        self._twin = twin

    def read(self, iova: int, length: int) -> bytes:
        """Read the client's memory. Raises MessageDmaError."""
        parts = []
        for start in range(iova, iova + length, self.chunk):
            count = min(self.chunk, iova + length - start)
            parts.append(self._ask(Pending(Command.DMA_READ, start, count), b""))
        return b"".join(parts)

    def write(self, iova: int, data: bytes) -> None:
        """Write the client's memory. Raises MessageDmaError."""
        for start in range(0, len(data), self.chunk):
            part = data[start : start + self.chunk]
            self._ask(Pending(Command.DMA_WRITE, iova + start, len(part)), part)

    def _ask(self, pending: Pending, data: bytes) -> bytes:
        if self.chunk <= 0 or self._closed:
            raise MessageDmaError("the client is gone, or takes no data transfers")
        on_connection = threading.get_ident() == self.thread
        if self._twin is not None:
            self._exchange_on_twin(self._twin, pending, data)
        elif on_connection and self._reply_due():
            raise self._would_deadlock(pending)
        else:
            self._exchange(pending, data, on_connection)
        if pending.failure:
            raise MessageDmaError(f"{pending.command.name} at {pending.address:#x}: {pending.failure}")
        return pending.data

    def _would_deadlock(self, pending: Pending) -> MessageDmaError:
        """The fault's text goes no further than the DMA space: the first of a connection is logged."""
        error = MessageDmaError(
            f"{pending.command.name} inside a handler whose reply the client waits for "
            "would never be answered",
            remedy="transfer in a task or a timer, or let the client share its memory",
        )
        if not self._warned:
            self._warned = True
            _log.warning("%s", error)
        return error

    def _message(self, message_id: int, pending: Pending, data: bytes) -> bytes:
        size = HEADER_SIZE + DMA_ACCESS.size + len(data)
        header = HEADER.pack(message_id, pending.command, size, TYPE_COMMAND, 0)
        return header + DMA_ACCESS.pack(pending.address, pending.count) + data

    def _exchange(self, pending: Pending, data: bytes, on_connection: bool) -> None:
        with self._arrived:
            message_id = self._next_id
            self._next_id = (message_id + 1) & 0xFFFF
            if message_id in self._pending:
                raise MessageDmaError("65536 transfers are waiting for the client")
            self._pending[message_id] = pending
            try:
                with self._send_lock:
                    self._socket.sendall(self._message(message_id, pending, data))
                if on_connection:
                    self._serve(pending)
                else:
                    self._wait(pending)
            except OSError as error:
                pending.fail(f"the connection failed: {error.strerror}")
            finally:
                del self._pending[message_id]

    def _wait(self, pending: Pending) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not pending.done:
            left = deadline - time.monotonic()
            if left <= 0:
                pending.fail(f"no answer within {TIMEOUT_S:g} s")
                return
            self._arrived.wait(left)

    def _exchange_on_twin(self, twin: socket.socket, pending: Pending, data: bytes) -> None:
        with self._arrived:
            message_id = self._next_id
            self._next_id = (message_id + 1) & 0xFFFF
            try:
                twin.sendall(self._message(message_id, pending, data))
                header = _receive_exactly(twin, HEADER_SIZE)
                reply_id, command, size, flags, error = HEADER.unpack(header)
                expected = (message_id, pending.command, TYPE_REPLY)
                longest = HEADER_SIZE + DMA_ACCESS.size + pending.count
                if (reply_id, command, flags & TYPE_MASK) != expected or not HEADER_SIZE <= size <= longest:
                    self._statistics.rejections[Rejection.WRONG_REPLY] += 1
                    self.close()
                    raise MessageDmaError("the client's reply on the twin socket does not fit the request")
                payload = _receive_exactly(twin, size - HEADER_SIZE)
            except OSError as failure:
                self.close()
                raise MessageDmaError(f"the twin socket failed: {failure}") from None
            if not pending.complete(flags, error, payload):
                self._statistics.rejections[Rejection.WRONG_REPLY] += 1

    def reply(
        self, message_id: int, command: int, flags: int, error: int, payload: bytes
    ) -> Rejection | None:
        """A reply came on the main socket. Returns what is wrong with it."""
        with self._arrived:
            pending = self._pending.get(message_id)
            if pending is None or pending.done:
                return Rejection.UNEXPECTED_REPLY
            fits = command == pending.command and pending.complete(flags, error, payload)
            if not fits:
                pending.fail("the client's reply does not fit the request")
            self._arrived.notify_all()
            return None if fits else Rejection.WRONG_REPLY

    def close(self) -> None:
        """The connection ended: whoever waits gets its error."""
        with self._arrived:
            self._closed = True
            for pending in self._pending.values():
                pending.fail("the connection ended")
            self._arrived.notify_all()
            if self._twin is not None:
                self._twin.close()


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionResetError("the client closed it")
        data += part
    return bytes(data)
