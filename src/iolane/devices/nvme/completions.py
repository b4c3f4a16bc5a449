"""Posting completions (Base 3.3.1.2, 3.3.3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iolane.devices.nvme.queues import Completion, CompletionQueue
from iolane.devices.nvme.spec import COMPLETION_ENTRY_SIZE, DO_NOT_RETRY, MORE, RETRYABLE, Status
from iolane.devices.nvme.structures import COMPLETION
from iolane.model.dma import DmaFault

if TYPE_CHECKING:
    from iolane.devices.nvme.controller import Nvme


class Completions:
    """Writes completions into their queues, or keeps them until there is room."""

    def __init__(self, controller: Nvme) -> None:
        self.controller = controller

    def post(
        self, sqid: int, cid: int, status: Status = Status.SUCCESS, result: int = 0, *, more: bool = False
    ) -> None:
        """Complete a command of submission queue `sqid`."""
        state = self.controller.state
        submission = state.submission.get(sqid)
        if submission is None or not self.controller.running:
            return
        field = int(status) | (MORE if more else 0)
        if status is not Status.SUCCESS and status not in RETRYABLE:
            field |= DO_NOT_RETRY
        queue = state.completion[submission.cqid]
        completion = Completion(result, sqid, submission.head, cid, field)
        if queue.waiting or queue.full:
            queue.waiting.append(completion)
        else:
            self._write(queue, completion)

    def consumed(self, queue: CompletionQueue) -> None:
        """The host moved the head: what waited for room is posted, and the queue's commands go on."""
        while queue.waiting and not queue.full and self.controller.running:
            self._write(queue, queue.waiting.pop(0))
        if self.controller.signals.pin:
            self.controller.signals.update_pin()
        self.controller.arbiter.wake()

    def forget(self, sqid: int) -> None:
        """The submission queue is deleted: nothing of it is posted any more (Base 5.7)."""
        for queue in self.controller.state.completion.values():
            queue.waiting = [completion for completion in queue.waiting if completion.sqid != sqid]

    def _write(self, queue: CompletionQueue, completion: Completion) -> None:
        entry = COMPLETION.pack(
            completion.result,
            0,
            completion.sq_head,
            completion.sqid,
            completion.cid,
            completion.status << 1 | queue.phase,
        )
        try:
            self.controller.dma.write(queue.base + COMPLETION_ENTRY_SIZE * queue.tail, entry)
        except DmaFault as fault:
            self.controller.fail(f"completion queue {queue.qid} can't be written: {fault}")
            return
        queue.advance()
        self.controller.signals.mark(queue)
