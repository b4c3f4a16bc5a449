"""The hot path: guest accesses of 1, 2 and 4 bytes to regions, from `recvmsg` to `send` in one function.

Two system calls and the register map are what an access should cost, so here nothing is called that
need not be: one layout unpacks header and access together, and `region.read` and `region.write` are
looked up at each access because tracing exchanges them. Everything else goes through
`Dispatcher.dispatch`. A compiled twin of `TrapLoop.serve` may take its place: it needs the receiver,
the lock, the open regions and the dispatcher, and keeps `receiver.position` and `posted` as described
there.
"""

from __future__ import annotations

import socket
import threading
from struct import Struct
from typing import Protocol

from iolane.carriers.vfio_user.message_dma import TIMEOUT_S, Pending
from iolane.carriers.vfio_user.protocol import (
    HEADER_SIZE,
    MAX_MESSAGE_SIZE,
    REGION_ACCESS,
    TYPE_REPLY,
    Command,
    HeaderFlag,
)
from iolane.carriers.vfio_user.rejection import RefusedError, Rejection
from iolane.carriers.vfio_user.session import Session
from iolane.carriers.vfio_user.wire import Receiver, limit_receive

ACCESS = Struct("<HHIIIQIII")
"""Header, region access, and the first four bytes behind them: what a write of up to 4 bytes carries."""
ACCESS_SIZE = HEADER_SIZE + REGION_ACCESS.size
REPLY_LAYOUT = "<HHIIIQII"
ACCESS_REPLY = Struct(REPLY_LAYOUT)
VALUE_FORMATS = {1: "B", 2: "H", 4: "I"}
VALUE_MASKS = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF}
NESTING_LIMIT = 16
"""Waits for message DMA inside each other; a client that causes more gets the fault of a transfer that
failed.
"""


class ConnectionEndedError(ConnectionError):
    """The client is gone, or must go."""


class Dispatcher(Protocol):
    """Takes what the loop does not."""

    def dispatch(self, message_id: int, command: int, size: int, flags: int, error: int) -> None:
        """Handle the message of `size` bytes before `receiver.position`. Raises ConnectionEndedError."""

    def failed(self, message_id: int, command: int, flags: int, error: Exception) -> None:
        """An access went wrong in the device's code, or was refused."""


class TrapLoop:
    """Receives and answers messages until the client goes or a nested call has what it waits for.

    `receiver.position` is behind the message being handled whenever code that may receive runs:
    handlers of posted writes, and `dispatch`. `posted` is true inside a handler whose reply nobody waits
    for, and stays so until the next other one.
    """

    def __init__(
        self, connection: socket.socket, receiver: Receiver, session: Session, dispatcher: Dispatcher
    ) -> None:
        self.posted = False
        self._depth = 0
        self._socket = connection
        self._receiver = receiver
        self._session = session
        self._dispatcher = dispatcher

    def serve_nested(self, until: Pending) -> None:
        """Inside the handler of a posted write: handle messages until `until` is done, or the client is
        silent for too long.
        """
        if self._depth >= NESTING_LIMIT:
            until.fail(f"{NESTING_LIMIT} transfers wait inside each other already")
            return
        self._depth += 1
        limit_receive(self._socket, TIMEOUT_S)
        try:
            self.serve(until)
        except BlockingIOError:
            until.fail(f"no answer within {TIMEOUT_S:g} s")
        finally:
            self._depth -= 1
            self.posted = True
            if not self._depth:
                limit_receive(self._socket, 0)

    def serve(self, until: Pending | None = None) -> None:
        """Handle messages; return when `until` is done. Raises ConnectionEndedError when the client is
        gone.
        """
        receiver, session, dispatcher = self._receiver, self._session, self._dispatcher
        lock: threading.RLock = session.device.lock
        regions, statistics, send = session.open_regions, session.statistics, self._socket.send
        buffer, unpack = receiver.buffer, ACCESS.unpack_from
        answer = bytearray(ACCESS_SIZE + 8)
        done, acknowledgement = ACCESS_REPLY.pack_into, memoryview(answer)[:ACCESS_SIZE]
        read_replies = {
            count: (Struct(REPLY_LAYOUT + form).pack_into, memoryview(answer)[: ACCESS_SIZE + count])
            for count, form in VALUE_FORMATS.items()
        }
        masks = VALUE_MASKS
        READ, WRITE = int(Command.REGION_READ), int(Command.REGION_WRITE)
        REPLY, NO_REPLY = TYPE_REPLY, int(HeaderFlag.NO_REPLY)
        self.posted = posted = False

        while until is None or not until.done:
            position, end, plain = receiver.position, receiver.end, receiver.plain
            while end - position >= HEADER_SIZE:
                number, command, size, flags, error, offset, index, count, data = unpack(buffer, position)
                if size > end - position or size < HEADER_SIZE:
                    break
                try:
                    if command == READ and size == ACCESS_SIZE and not flags and plain:
                        region, reply = regions.get(index), read_replies.get(count)
                        if region is not None and reply is not None and offset + count <= region.size:
                            statistics.reads += 1
                            receiver.position = position = position + ACCESS_SIZE
                            if posted:
                                self.posted = posted = False
                            with lock:
                                value = region.read(offset, count)
                            pack, view = reply
                            pack(answer, 0, number, READ, len(view), REPLY, 0, offset, index, count, value)
                            try:
                                send(view)
                            except OSError as gone:
                                raise ConnectionEndedError("the client takes no replies") from gone
                            continue
                    elif (
                        command == WRITE
                        and size == ACCESS_SIZE + count
                        and (flags == NO_REPLY or not flags)
                        and plain
                    ):
                        region, mask = regions.get(index), masks.get(count)
                        if region is not None and mask is not None and offset + count <= region.size:
                            statistics.writes += 1
                            receiver.position = position = position + size
                            if flags:
                                if not posted:
                                    self.posted = posted = True
                                with lock:
                                    region.write(offset, count, data & mask)
                                position, end = receiver.position, receiver.end
                                continue
                            if posted:
                                self.posted = posted = False
                            with lock:
                                region.write(offset, count, data & mask)
                            done(answer, 0, number, WRITE, ACCESS_SIZE, REPLY, 0, offset, index, count)
                            try:
                                send(acknowledgement)
                            except OSError as gone:
                                raise ConnectionEndedError("the client takes no replies") from gone
                            continue
                    receiver.position = position + size
                    dispatcher.dispatch(number, command, size, flags, error)
                    posted = False
                except ConnectionEndedError:
                    raise
                except Exception as failure:
                    self.posted = posted = False
                    dispatcher.failed(number, command, flags, failure)
                position, end, plain = receiver.position, receiver.end, receiver.plain
                if until is not None and until.done:
                    return
            receiver.position = position
            if end - position >= HEADER_SIZE:
                self._check_size(size)
            if not receiver.receive():
                raise ConnectionEndedError("the client closed the connection")

    def _check_size(self, size: int) -> None:
        if size < HEADER_SIZE:
            raise RefusedError(Rejection.MESSAGE_TOO_SHORT, f"{size} bytes")
        if size > MAX_MESSAGE_SIZE:
            raise RefusedError(Rejection.MESSAGE_TOO_LONG, f"{size} bytes")
