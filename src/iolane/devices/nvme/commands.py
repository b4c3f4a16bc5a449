"""Commands between their fetch and their completion."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from iolane.devices.nvme.spec import CommandError, IoOpcode, Status
from iolane.devices.nvme.structures import SubmissionEntry
from iolane.model.dma import DmaFault, Pinned

if TYPE_CHECKING:
    from iolane.devices.nvme.controller import Nvme

NO_LOCATION = 0xFFFF
"""Parameter Error Location of an error that is of no particular byte."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROTECTED = (errno.EROFS, errno.EPERM, errno.EACCES)


class Command:
    """A command that is being executed."""

    __slots__ = ("claim", "entry", "pinned", "sqid", "started", "working")

    def __init__(self, sqid: int, entry: SubmissionEntry, started: int) -> None:
        self.sqid = sqid
        self.entry = entry
        self.started = started
        self.claim = [True]
        """Popped by the worker that begins with the command, or by who aborts it: by one of them only."""
        self.pinned: Pinned | None = None
        self.working = False
        """A task of it has not ended."""

    @property
    def key(self) -> tuple[int, int]:
        return self.sqid, self.entry.cid

    def take(self) -> bool:
        """Claim the command. False when somebody else has; needs no lock."""
        try:
            return self.claim.pop()
        except IndexError:
            return False

    def release(self) -> DmaFault | None:
        """Give the guest's memory back. Returns what went wrong with it meanwhile."""
        pinned, self.pinned = self.pinned, None
        if pinned is not None:
            try:
                pinned.release()
            except DmaFault as fault:
                return fault
        return None


def error_from(error: BaseException, entry: SubmissionEntry) -> CommandError:
    """What the host is told of an exception (NVM Command Set 3.2; Base, Figures 95 to 98)."""
    if isinstance(error, CommandError):
        return error
    if isinstance(error, DmaFault):
        return CommandError(Status.DATA_TRANSFER_ERROR, str(error))
    if not isinstance(error, OSError):
        return CommandError(Status.INTERNAL_ERROR, f"{type(error).__name__}: {error}")
    if error.errno == errno.EFAULT:
        return CommandError(Status.DATA_TRANSFER_ERROR, "the guest's memory is gone")
    if error.errno in _NO_SPACE:
        return CommandError(Status.CAPACITY_EXCEEDED, str(error), lba=entry.lba)
    if error.errno in _PROTECTED:
        return CommandError(Status.NAMESPACE_WRITE_PROTECTED, str(error))
    reads = entry.opcode in (IoOpcode.READ, IoOpcode.COMPARE)
    status = Status.UNRECOVERED_READ if reads else Status.WRITE_FAULT
    return CommandError(status, str(error), lba=entry.lba)


class Commands:
    """All commands that are being executed."""

    def __init__(self, controller: Nvme) -> None:
        self.controller = controller
        self.active: dict[tuple[int, int], Command] = {}
        self._leaving: set[Command] = set()
        """Commands of before a reset whose work still runs: nobody hears of their end."""
        self._counts: dict[int, int] = {}

    def start(self, sqid: int, entry: SubmissionEntry) -> Command:
        """A command was fetched."""
        command = Command(sqid, entry, self.controller.clock.now_ns())
        if command.key in self.active or (sqid == 0 and self.controller.events.holds(entry.cid)):
            raise CommandError(Status.COMMAND_ID_CONFLICT, location=2)
        self.active[command.key] = command
        self._counts[sqid] = self._counts.get(sqid, 0) + 1
        if sqid:
            self.controller.health.started()
        return command

    def count(self, sqid: int) -> int:
        """Commands of a submission queue that are being executed."""
        return self._counts.get(sqid, 0)

    @property
    def io_count(self) -> int:
        """I/O commands that are being executed."""
        return len(self.active) - self.count(0)

    def run(self, command: Command, work: Callable[[], object], then: Callable[[], int] = lambda: 0) -> None:
        """Do `work` without the device's lock, then complete the command with the result of `then`."""
        claim = command.take
        command.working = True

        def claimed() -> None:
            if claim():
                work()

        self.controller.tasks.run(
            claimed, lambda _: self._ended(command, then), lambda error: self._failed(command, error)
        )

    def _ended(self, command: Command, then: Callable[[], int]) -> None:
        command.working = False
        fault = command.release()
        if self._left(command):
            return
        try:
            if fault is not None:
                raise fault
            self.finish(command, then())
        except CommandError as error:
            self.fail(command, error)
        except DmaFault as error:
            self.fail(command, error_from(error, command.entry))
        self.controller.arbiter.wake()

    def _failed(self, command: Command, error: BaseException) -> None:
        command.working = False
        command.release()
        if self._left(command):
            return
        found = error_from(error, command.entry)
        if found.status is Status.INTERNAL_ERROR and isinstance(error, Exception):
            self.controller.report_error("an NVMe command", error)
        self.fail(command, found)
        self.controller.arbiter.wake()

    def _left(self, command: Command) -> bool:
        """Whether the command was taken off before its work ended."""
        if self.active.get(command.key) is command:
            return False
        self._leaving.discard(command)
        if self.controller.ending:
            self.controller.look_whether_idle()
        return True

    def finish(self, command: Command, result: int = 0) -> None:
        """The command succeeded."""
        self.controller.accounts.completed(command, self.controller.clock.now_ns())
        self.controller.completions.post(command.sqid, command.entry.cid, Status.SUCCESS, result)
        self._remove(command)

    def fail(self, command: Command, error: CommandError) -> None:
        """The command failed."""
        if error.status in (Status.UNRECOVERED_READ, Status.WRITE_FAULT):
            self.controller.state.health.media_errors += 1
        self.controller.accounts.failed(command)
        self.reject(command.sqid, command.entry, error)
        self._remove(command)

    def reject(self, sqid: int, entry: SubmissionEntry, error: CommandError) -> None:
        """Complete a command with an error and put it into the error log."""
        location = NO_LOCATION if error.location is None else error.location
        self.controller.log_pages.record_error(
            sqid=sqid,
            cid=entry.cid,
            status=error.status,
            location=location,
            lba=0 if error.lba is None else error.lba,
            nsid=entry.nsid,
        )
        self.controller.completions.post(sqid, entry.cid, error.status, more=True)

    def cancel(self, command: Command, status: Status) -> bool:
        """Complete a command whose work has not begun. False when it has."""
        if not command.working or not command.take():
            return False
        self.controller.completions.post(command.sqid, command.entry.cid, status)
        self._remove(command)
        return True

    def withdraw(self, command: Command) -> None:
        """The command is no longer executed, without a completion."""
        self._remove(command)

    def of_queue(self, sqid: int) -> list[Command]:
        """Commands of a submission queue that are being executed."""
        return [command for command in self.active.values() if command.sqid == sqid]

    def abandon(self) -> None:
        """A reset: no command completes any more. `idle` is when those that have begun have ended, too."""
        for command in list(self.active.values()):
            command.take()
            if command.working:
                self._leaving.add(command)
            self._remove(command)

    @property
    def idle(self) -> bool:
        """No I/O command is being executed, and no work of one from before a reset goes on."""
        return not self._leaving and not self.io_count

    def reset(self) -> None:
        """Nothing is in flight: the device has been drained."""
        self.active.clear()
        self._leaving.clear()
        self._counts.clear()

    def _remove(self, command: Command) -> None:
        if self.active.pop(command.key, None) is None:
            return
        self._counts[command.sqid] -= 1
        if command.sqid:
            self.controller.health.finished()
            if not self._counts[command.sqid]:
                self.controller.queues.drained(command.sqid)
        if self.controller.ending:
            self.controller.look_whether_idle()
