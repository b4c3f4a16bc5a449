"""Creating and deleting I/O queues (Base 5.4 to 5.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iolane.devices.nvme.commands import Command
from iolane.devices.nvme.queues import CompletionQueue, SubmissionQueue
from iolane.devices.nvme.registers import MAX_QUEUE_ENTRIES, page_size
from iolane.devices.nvme.spec import CommandError, Status, invalid_field
from iolane.devices.nvme.structures import SubmissionEntry

if TYPE_CHECKING:
    from iolane.devices.nvme.controller import Nvme

QID_LOCATION, QSIZE_LOCATION, FLAGS_LOCATION, UPPER_LOCATION, PRP1_LOCATION = 40, 42, 44, 46, 24
CONTIGUOUS, INTERRUPTS_ENABLED = 1 << 0, 1 << 1
SUBMISSION_ENTRY_SHIFT, COMPLETION_ENTRY_SHIFT = 6, 4


class Queues:
    """The queues' life."""

    def __init__(self, controller: Nvme) -> None:
        self.controller = controller
        self.deleting: dict[int, Command] = {}
        """Submission queue -> the command that deletes it when its commands have ended."""

    def create_completion(self, entry: SubmissionEntry) -> int:
        """Create I/O Completion Queue (Base 5.4)."""
        state = self.controller.state
        qid = entry.cdw10 & 0xFFFF
        self._check_new(qid, taken=qid in state.completion)
        size = self._size(entry, self.controller.bar0.CC.IOCQES == COMPLETION_ENTRY_SHIFT)
        vector, interrupts = entry.cdw11 >> 16, bool(entry.cdw11 & INTERRUPTS_ENABLED)
        if interrupts and vector >= self.controller.signals.vector_count:
            raise CommandError(
                Status.INVALID_INTERRUPT_VECTOR, f"there is no vector {vector}", location=UPPER_LOCATION
            )
        state.completion[qid] = CompletionQueue(
            qid, self._base(entry), size, vector if interrupts else 0, interrupts
        )
        return 0

    def create_submission(self, entry: SubmissionEntry) -> int:
        """Create I/O Submission Queue (Base 5.5)."""
        state = self.controller.state
        qid, cqid = entry.cdw10 & 0xFFFF, entry.cdw11 >> 16
        if not 0 < cqid <= self.controller.queue_pairs:
            raise CommandError(
                Status.INVALID_QUEUE_ID, f"no completion queue {cqid}", location=UPPER_LOCATION
            )
        if cqid not in state.completion:
            raise CommandError(Status.INVALID_CQ, f"no completion queue {cqid}", location=UPPER_LOCATION)
        self._check_new(qid, taken=qid in state.submission)
        size = self._size(entry, self.controller.bar0.CC.IOSQES == SUBMISSION_ENTRY_SHIFT)
        queue = state.submission[qid] = SubmissionQueue(qid, self._base(entry), size, cqid)
        self.controller.shadow.adopt(queue, state.completion[cqid])
        return 0

    def _check_new(self, qid: int, *, taken: bool) -> None:
        if not 0 < qid <= self.controller.queue_pairs or taken:
            raise CommandError(
                Status.INVALID_QUEUE_ID, f"queue {qid} can't be created", location=QID_LOCATION
            )

    def _size(self, entry: SubmissionEntry, entry_size_set: bool) -> int:
        """0's based, at least 2 (Base 3.3.3.1); the entry size must have been set in CC before."""
        size = (entry.cdw10 >> 16) + 1
        if not 2 <= size <= MAX_QUEUE_ENTRIES or not entry_size_set:
            raise CommandError(Status.INVALID_QUEUE_SIZE, f"{size} entries", location=QSIZE_LOCATION)
        return size

    def _base(self, entry: SubmissionEntry) -> int:
        if not entry.cdw11 & CONTIGUOUS:
            raise invalid_field(FLAGS_LOCATION, "CAP.CQR: queues are physically contiguous")
        if entry.prp1 & (page_size(self.controller.bar0.CC) - 1):
            raise CommandError(
                Status.INVALID_PRP_OFFSET, "a queue starts at a page's start", location=PRP1_LOCATION
            )
        return entry.prp1

    def delete_completion(self, entry: SubmissionEntry) -> int:
        """Delete I/O Completion Queue (Base 5.6): after its submission queues."""
        state = self.controller.state
        qid = entry.cdw10 & 0xFFFF
        if qid == 0 or qid not in state.completion:
            raise CommandError(Status.INVALID_QUEUE_ID, f"no completion queue {qid}", location=QID_LOCATION)
        if any(queue.cqid == qid for queue in state.submission.values()):
            raise CommandError(
                Status.INVALID_QUEUE_DELETION, "it has submission queues", location=QID_LOCATION
            )
        del state.completion[qid]
        self.controller.signals.update_pin()
        return 0

    def delete_submission(self, command: Command) -> None:
        """Delete I/O Submission Queue (Base 5.7): its commands end or are aborted first."""
        qid = command.entry.cdw10 & 0xFFFF
        if qid == 0 or qid not in self.controller.state.submission or qid in self.deleting:
            raise CommandError(Status.INVALID_QUEUE_ID, f"no submission queue {qid}", location=QID_LOCATION)
        self.deleting[qid] = command
        for running in self.controller.commands.of_queue(qid):
            self.controller.commands.cancel(running, Status.ABORTED_SQ_DELETION)
        if not self.controller.commands.count(qid):
            self.drained(qid)

    def drained(self, qid: int) -> None:
        """No command of the submission queue is being executed any more."""
        command = self.deleting.pop(qid, None)
        if command is None:
            return
        self.controller.completions.forget(qid)
        self.controller.state.submission.pop(qid, None)
        self.controller.commands.finish(command)

    def reset(self) -> None:
        """All queues are gone."""
        self.deleting.clear()
        self.controller.state.submission.clear()
        self.controller.state.completion.clear()
