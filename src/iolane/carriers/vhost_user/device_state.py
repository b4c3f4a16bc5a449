"""The device's state on its way from one back end to another ("Migrating back-end state")."""

from __future__ import annotations

import fcntl
import os
import select
import socket
from enum import Enum

from iolane.carriers.descriptors import SignalKind, prepare_signal
from iolane.carriers.vhost_user.protocol import DEVICE_STATE, PHASE_STOPPED, VRING_NO_FD, TransferDirection
from iolane.carriers.vhost_user.rejection import RefusedError, Rejection
from iolane.carriers.vhost_user.session import Session
from iolane.carriers.vhost_user.wire import Message
from iolane.errors import IolaneError

LARGEST_STATE = 64 << 20
CHUNK = 1 << 16
DIRECTIONS = frozenset(TransferDirection)


class Outcome(Enum):
    """How a transfer ended."""

    UNDER_WAY = "under way"
    COMPLETE = "complete"
    FAILED = "failed"


class Transfer:
    """Bytes from or to a pipe, piece by piece: the front end fills or empties it, then asks how that went.

    Args:
        fd: the pipe's end, which never blocks; taken over.
        data: what to write; None: read.
    """

    def __init__(self, fd: int, data: bytes | None) -> None:
        self.outcome = Outcome.UNDER_WAY
        self._fd = fd
        self._left = memoryview(data) if data is not None else None
        self._read = bytearray()
        self.advance()

    @property
    def data(self) -> bytes:
        """What was read."""
        return bytes(self._read)

    def advance(self) -> None:
        """Read or write all that can be without waiting. Does nothing once it has ended."""
        try:
            while self.outcome is Outcome.UNDER_WAY:
                self.outcome = self._take_piece() if self._left is None else self._give_piece(self._left)
        except BlockingIOError:
            return
        except OSError:
            self.outcome = Outcome.FAILED
        self.close()

    def _take_piece(self) -> Outcome:
        piece = os.read(self._fd, CHUNK)
        self._read += piece
        if not piece:
            return Outcome.COMPLETE  # "closing the file descriptor signals the end of transfer"
        return Outcome.UNDER_WAY if len(self._read) <= LARGEST_STATE else Outcome.FAILED

    def _give_piece(self, left: memoryview) -> Outcome:
        self._left = left[os.write(self._fd, left[:CHUNK]) :] if left else left
        return Outcome.UNDER_WAY if self._left else Outcome.COMPLETE

    def wait(self, connection: socket.socket) -> bool:
        """Until it can go on. False: it is over, or the front end says something first."""
        if self.outcome is not Outcome.UNDER_WAY:
            return False
        poll = select.poll()
        poll.register(self._fd, select.POLLIN if self._left is None else select.POLLOUT)
        poll.register(connection, select.POLLIN)
        return self._fd in {fd for fd, _ in poll.poll()}

    def close(self) -> None:
        """Whoever is at the other end sees it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class DeviceStateCommands:
    """SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._transfer: Transfer | None = None
        self._loading = False

    def set_fd(self, message: Message) -> int:
        """Start a transfer over the front end's pipe. The reply's bit 8 says that we send none of our own."""
        direction, phase = message.unpack(DEVICE_STATE)
        if direction not in DIRECTIONS or phase != PHASE_STOPPED:
            raise RefusedError(Rejection.STATE_DIRECTION, f"direction {direction}, phase {phase}")
        if self._transfer is not None or self._session.running:
            raise RefusedError(Rejection.STATE_RUNNING)
        saving = direction == TransferDirection.SAVE
        fd = message.fds[0]
        unfit = os.O_RDONLY if saving else os.O_WRONLY
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == unfit:
            raise RefusedError(Rejection.FD_KIND, "the pipe's other end")
        try:
            prepare_signal(fd, SignalKind.PIPE)
        except IolaneError as error:
            raise RefusedError(Rejection.FD_KIND, str(error)) from None
        data = self._save() if saving else None
        self._loading = not saving
        self._transfer = Transfer(message.take_fd(), data)
        return VRING_NO_FD

    def attend(self, connection: socket.socket) -> None:
        """Between two requests: have a transfer go on until the front end says something."""
        while self._transfer is not None and self._transfer.wait(connection):
            self._transfer.advance()

    def check(self, message: Message) -> int:
        """Whether the whole state went out, or came in and was taken."""
        transfer, self._transfer = self._transfer, None
        if transfer is None:
            raise RefusedError(Rejection.STATE_REFUSED, "no transfer was started")
        transfer.advance()  # what is in the pipe is taken, but nothing more is waited for
        transfer.close()
        if transfer.outcome is not Outcome.COMPLETE:
            raise RefusedError(Rejection.STATE_REFUSED, "the transfer is not complete")
        if self._loading:
            try:
                self._session.device.load(transfer.data)
            except IolaneError as error:
                raise RefusedError(Rejection.STATE_REFUSED, str(error)) from None
        return 0

    def _save(self) -> bytes:
        try:
            return self._session.device.save()
        except IolaneError as error:
            raise RefusedError(Rejection.STATE_REFUSED, str(error)) from None

    def close(self) -> None:
        """End what is under way."""
        if self._transfer is not None:
            self._transfer.close()
            self._transfer = None
