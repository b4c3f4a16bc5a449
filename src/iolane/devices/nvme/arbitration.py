"""Fetching commands: round robin over the submission queues (Base 3.4.4.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iolane.devices.nvme.queues import SubmissionQueue
from iolane.devices.nvme.spec import SUBMISSION_ENTRY_SIZE, CommandError, Status
from iolane.devices.nvme.structures import SubmissionEntry, parse_entries
from iolane.model.dma import DmaFault

if TYPE_CHECKING:
    from iolane.devices.nvme.controller import Nvme

IN_FLIGHT_LIMIT = 256
"""I/O commands executed at once; more wait in their queues."""
BATCH = 256
"""Commands fetched in one go before others get the device's lock."""


class Arbiter:
    """Takes commands out of the queues, a burst of each in turn, and has them executed."""

    def __init__(self, controller: Nvme) -> None:
        self.controller = controller
        self.busy = False
        """A batch is being fetched: interrupts go out at its end."""
        self._ready: dict[int, None] = {}
        self._held: set[int] = set()
        """Queues with commands that can't be fetched now."""

    def ring(self, qid: int) -> None:
        """The host submitted commands."""
        self._ready[qid] = None
        self.wake()

    def wake(self) -> None:
        """Something ended: queues that were held may go on."""
        if self._held:
            self._ready.update(dict.fromkeys(sorted(self._held)))
            self._held.clear()
        if self._ready:
            self.serve()

    def hold_all(self) -> None:
        """Look at every queue again at the next `wake`: the device was loaded or is paused."""
        self._held.update(self.controller.state.submission)

    def serve(self) -> None:
        """Fetch until nothing is left to do now, or the batch is full."""
        if self.busy:
            return
        self.busy = True
        budget = BATCH
        try:
            while self._ready and budget > 0:
                qid = next(iter(self._ready))
                del self._ready[qid]
                budget -= self._serve_queue(qid)
        finally:
            self.busy = False
            self.controller.signals.flush()
        if self._ready:
            self.controller.tasks.run(lambda: None, lambda _: self.serve(), lambda _: self.serve())

    def _serve_queue(self, qid: int) -> int:
        """A burst of one queue. Returns the number of commands."""
        queue = self.controller.state.submission.get(qid)
        if queue is None or not self.controller.running:
            return 0
        self.controller.shadow.refresh_tail(queue)
        room = self._room(queue)
        if room <= 0:
            self._held.add(qid)
            return 0
        count = min(queue.pending, room, self.controller.features.burst, queue.size - queue.head)
        if count:
            for entry in self._fetch(queue, count):
                self._execute(qid, entry)
            self._ready[qid] = None
        else:
            self.controller.shadow.caught_up(queue)
            if queue.pending:
                self._ready[qid] = None
        return count

    def _room(self, queue: SubmissionQueue) -> int:
        """How many commands may be fetched from the queue."""
        if self.controller.paused or queue.qid in self.controller.queues.deleting:
            return 0
        if self.controller.state.completion[queue.cqid].waiting:
            return 0
        if queue.qid == 0:
            return queue.size
        return IN_FLIGHT_LIMIT - self.controller.commands.io_count

    def _fetch(self, queue: SubmissionQueue, count: int) -> list[SubmissionEntry]:
        """Read commands. A queue that can't be read is fatal (Base 3.1.3.6, CSTS.CFS)."""
        try:
            data = self.controller.dma.read(
                queue.base + SUBMISSION_ENTRY_SIZE * queue.head, SUBMISSION_ENTRY_SIZE * count
            )
        except DmaFault as fault:
            self.controller.fail(f"submission queue {queue.qid} can't be read: {fault}")
            return []
        queue.head = (queue.head + count) % queue.size
        return parse_entries(data)

    def _execute(self, qid: int, entry: SubmissionEntry) -> None:
        controller = self.controller
        try:
            command = controller.commands.start(qid, entry)
        except CommandError as error:
            controller.commands.reject(qid, entry, error)
            return
        try:
            if qid:
                controller.io.execute(command)
            else:
                controller.admin.execute(command)
        except CommandError as error:
            controller.commands.fail(command, error)
        except Exception as error:
            controller.report_error("an NVMe command", error)
            controller.commands.fail(command, CommandError(Status.INTERNAL_ERROR))

    def reset(self) -> None:
        """Nothing is to be fetched."""
        self._ready.clear()
        self._held.clear()
