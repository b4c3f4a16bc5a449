"""Shadow doorbells (Base 5.8): the host writes tails and heads into memory and rings only when asked to.

The host compares EventIdx with what it writes and rings the doorbell register when it passes it. So the
controller that has fetched everything writes the tail it has seen into EventIdx, and then looks at the tail
once more: what came between would not be rung for. The Admin Queue's doorbells stay in the register: its
EventIdx follows each write, so the host always rings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iolane.devices.nvme.commands import error_from
from iolane.devices.nvme.queues import CompletionQueue, SubmissionQueue
from iolane.devices.nvme.registers import page_size
from iolane.devices.nvme.spec import ErrorEvent, invalid_field
from iolane.devices.nvme.state import Shadow
from iolane.devices.nvme.structures import SubmissionEntry
from iolane.memory.fence import fence
from iolane.model.dma import DmaFault

if TYPE_CHECKING:
    from iolane.devices.nvme.controller import Nvme

PRP1_LOCATION, PRP2_LOCATION = 24, 32


class ShadowDoorbells:
    """The two pages of the Doorbell Buffer Config command, laid out as the doorbell registers are."""

    def __init__(self, controller: Nvme) -> None:
        self.controller = controller
        self._refused: dict[int, int] = {}
        """Doorbell -> the invalid value of it that was reported last."""

    @property
    def _pages(self) -> Shadow | None:
        return self.controller.state.shadow

    def configure(self, entry: SubmissionEntry) -> int:
        """Doorbell Buffer Config: existing queues go on from where they are."""
        page = page_size(self.controller.bar0.CC)
        for address, location in ((entry.prp1, PRP1_LOCATION), (entry.prp2, PRP2_LOCATION)):
            if address == 0 or address & (page - 1):
                raise invalid_field(location, "a doorbell buffer is a page")
        state = self.controller.state
        present = {2 * queue.qid: queue.tail for queue in state.submission.values()}
        present |= {2 * queue.qid + 1: queue.head for queue in state.completion.values()}
        try:
            for doorbell, value in present.items():
                for pages in (entry.prp1, entry.prp2):
                    self.controller.dma.write(pages + 4 * doorbell, value.to_bytes(4, "little"))
        except DmaFault as fault:
            raise error_from(fault, entry) from None
        self._refused.clear()
        state.shadow = Shadow(entry.prp1, entry.prp2)
        return 0

    def covers(self, qid: int) -> bool:
        """Whether the queue's doorbells are in memory."""
        return qid != 0 and self._pages is not None

    def adopt(self, submission: SubmissionQueue, completion: CompletionQueue) -> None:
        """A submission queue was created: the host rings for its first command and its first completion."""
        pages = self._pages
        if pages is not None:
            self._store(pages.event_indexes, 2 * submission.qid, submission.tail)
            self._store(pages.event_indexes, 2 * completion.qid + 1, completion.head)

    def rung(self, doorbell: int, value: int) -> None:
        """The host wrote a doorbell register; the next value of it is wanted there, too."""
        pages = self._pages
        if pages is not None:
            self._store(pages.event_indexes, doorbell, value)

    def refresh_tail(self, queue: SubmissionQueue) -> None:
        """Look at the tail that the host wrote."""
        pages = self._pages
        if pages is None or queue.qid == 0:
            return
        tail = self._load(pages.doorbells, 2 * queue.qid, queue.tail)
        if tail != queue.tail:
            if queue.accepts(tail):
                queue.tail = tail
            else:
                self._refuse(2 * queue.qid, tail)

    def caught_up(self, queue: SubmissionQueue) -> None:
        """Every command seen is fetched: ask to be rung for the next, then look once more."""
        pages = self._pages
        if pages is None or queue.qid == 0:
            return
        self._store(pages.event_indexes, 2 * queue.qid, queue.tail)
        fence()
        self.refresh_tail(queue)

    def refresh_head(self, queue: CompletionQueue) -> None:
        """Look at the head that the host wrote, until it is the one for whose successor it rings.

        A head consumes at least one completion, so this ends.
        """
        pages = self._pages
        if pages is None or queue.qid == 0:
            return
        doorbell = 2 * queue.qid + 1
        while (head := self._load(pages.doorbells, doorbell, queue.head)) != queue.head:
            if not queue.accepts(head):
                self._refuse(doorbell, head)
                return
            queue.head = head
            self._store(pages.event_indexes, doorbell, head)
            fence()

    def reset(self) -> None:
        """Doorbells are registers again."""
        self._refused.clear()
        self.controller.state.shadow = None

    def _refuse(self, doorbell: int, value: int) -> None:
        if self._refused.get(doorbell) != value:
            self._refused[doorbell] = value
            self.controller.report_doorbell(ErrorEvent.INVALID_DOORBELL_VALUE)

    def _load(self, page: int, doorbell: int, otherwise: int) -> int:
        try:
            return int.from_bytes(self.controller.dma.read(page + 4 * doorbell, 4), "little")
        except DmaFault as fault:
            self.controller.fail(f"a shadow doorbell can't be read: {fault}")
            return otherwise

    def _store(self, page: int, doorbell: int, value: int) -> None:
        try:
            self.controller.dma.write(page + 4 * doorbell, value.to_bytes(4, "little"))
        except DmaFault as fault:
            self.controller.fail(f"a doorbell's EventIdx can't be written: {fault}")
