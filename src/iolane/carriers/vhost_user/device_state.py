"""The device's state on its way from one back end to another ("Migrating back-end state")."""

from __future__ import annotations

import fcntl
import os
import select
import threading
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
    """Bytes from or to a pipe. A thread reads, and writes what has no room at once: the front end fills or
    empties the pipe before it asks how that went.

    Args:
        fd: the pipe's end, which never blocks; taken over.
        data: what to write; None: read.
    """

    def __init__(self, fd: int, data: bytes | None) -> None:
        self.data = data if data is not None else b""
        self.outcome = Outcome.UNDER_WAY
        self._fd = fd
        self._writing = data is not None
        self._asked = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None
        if self._writing and self._fits():
            os.eventfd_write(self._asked, 1)  # nothing is waited for here
            self._run()
        else:
            self._thread = threading.Thread(target=self._run, name="device state", daemon=True)
            self._thread.start()

    def finish(self) -> Outcome:
        """The front end asks: what is in the pipe is taken, but nothing more is waited for."""
        if self._thread is not None:
            os.eventfd_write(self._asked, 1)
            self._thread.join()
        os.close(self._asked)
        return self.outcome

    def _fits(self) -> bool:
        """Whether there is room for all: a pipe that can be written has it for so much (pipe(7))."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return len(self.data) <= select.PIPE_BUF and bool(poll.poll(0))

    def _run(self) -> None:
        try:
            complete = self._write() if self._writing else self._read()
            self.outcome = Outcome.COMPLETE if complete else Outcome.FAILED
        except OSError:
            self.outcome = Outcome.FAILED
        finally:
            os.close(self._fd)  # "closing the file descriptor signals the end of transfer"

    def _write(self) -> bool:
        left = memoryview(self.data)
        while left:
            try:
                left = left[os.write(self._fd, left[:CHUNK]) :]
            except BlockingIOError:
                if not self._wait(select.POLLOUT):
                    return False
        return True

    def _read(self) -> bool:
        parts: list[bytes] = []
        total = 0
        while total <= LARGEST_STATE:
            try:
                part = os.read(self._fd, CHUNK)
            except BlockingIOError:
                if not self._wait(select.POLLIN):
                    return False
                continue
            if not part:
                self.data = b"".join(parts)
                return True
            parts.append(part)
            total += len(part)
        return False

    def _wait(self, events: int) -> bool:
        """Until the pipe is ready; False once the front end has asked and it is not."""
        poll = select.poll()
        poll.register(self._fd, events)
        poll.register(self._asked, select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        return self._fd in ready


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

    def check(self, message: Message) -> int:
        """Whether the whole state went out, or came in and was taken."""
        transfer, self._transfer = self._transfer, None
        if transfer is None:
            raise RefusedError(Rejection.STATE_REFUSED, "no transfer was started")
        if transfer.finish() is not Outcome.COMPLETE:
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
            self._transfer.finish()
            self._transfer = None
