"""Interrupts of the completion queues (PCIe Transport 3.5; Base 3.1.3.3, 3.1.3.4, 5.27.1.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iolane.devices.nvme.queues import CompletionQueue
from iolane.model.clock import Timer
from iolane.model.interrupts import InterruptIndex, InterruptMode
from iolane.model.pci.caps.msi import MsiCapability

if TYPE_CHECKING:
    from iolane.devices.nvme.controller import Nvme

COALESCING_UNIT = 100_000
"""Nanoseconds that the aggregation time counts in."""


class Signals:
    """Tells the host of completions: by messages, or by the pin while a queue holds unseen completions."""

    def __init__(self, controller: Nvme) -> None:
        self.controller = controller
        self.raised = 0
        self._marked: dict[int, int] = {}
        """Completions posted by queue, of which the host was not told yet."""
        self._held: dict[int, int] = {}
        """Completions by vector that wait to be coalesced."""
        self._timer: Timer | None = None
        self.pin = False
        """The pin is asserted."""

    @property
    def vector_count(self) -> int:
        """Interrupt vectors that a completion queue may name now."""
        interrupts = self.controller.interrupts
        match interrupts.mode:
            case InterruptMode.MSIX:
                return interrupts.group(InterruptIndex.MSIX).count
            case InterruptMode.MSI if isinstance(interrupts.msi, MsiCapability):
                return interrupts.msi.granted
        return 1

    def mark(self, queue: CompletionQueue) -> None:
        """A completion was posted. The host is told at once, or at the end of the batch."""
        if queue.interrupts:
            self._marked[queue.qid] = self._marked.get(queue.qid, 0) + 1
            if not self.controller.arbiter.busy:
                self.flush()

    def flush(self) -> None:
        """Tell the host of every queue with new completions."""
        if not self._marked:
            return
        marked, self._marked = self._marked, {}
        if not self._by_message:
            self.update_pin()
            return
        for qid, count in marked.items():
            queue = self.controller.state.completion.get(qid)
            if queue is not None:
                self._signal(queue, count)

    @property
    def _by_message(self) -> bool:
        return self.controller.interrupts.mode in (InterruptMode.MSIX, InterruptMode.MSI)

    def _signal(self, queue: CompletionQueue, count: int) -> None:
        features = self.controller.features.values
        limit, time = features.coalescing & 0xFF, features.coalescing >> 8
        if queue.qid == 0 or limit == 0 or time == 0 or queue.vector in features.uncoalesced:
            self._send(queue)
            return
        held = self._held.get(queue.vector, 0) + count
        if held > limit:
            self._held.pop(queue.vector, None)
            self._send(queue)
            return
        self._held[queue.vector] = held
        if self._timer is None:
            self._timer = self.controller.clock.call_after(time * COALESCING_UNIT, self.send_held)

    def send_held(self) -> None:
        """The aggregation time is over."""
        self._timer = None
        held, self._held = self._held, {}
        for vector in held:
            queues = self.controller.state.completion.values()
            queue = next((q for q in queues if q.vector == vector and q.interrupts), None)
            if queue is not None:
                self._send(queue)

    def _send(self, queue: CompletionQueue) -> None:
        """INTMS masks messages of MSI (not of MSI-X, which has its own masks) until INTMC."""
        state = self.controller.state
        masked = queue.vector < 32 and state.interrupt_mask >> queue.vector & 1
        if masked and self.controller.interrupts.mode is InterruptMode.MSI:
            if queue.qid not in state.unsent:
                state.unsent.append(queue.qid)
            return
        self.raised += 1
        self.controller.interrupts.raise_vector(queue.vector)

    def set_mask(self, mask: int) -> None:
        """INTMS or INTMC changed the mask."""
        state = self.controller.state
        state.interrupt_mask = mask
        if not self._by_message:
            self.update_pin()
            return
        unsent, state.unsent = state.unsent, []
        for qid in unsent:
            queue = state.completion.get(qid)
            if queue is not None and queue.used:
                self._send(queue)

    def update_pin(self) -> None:
        """The pin is asserted while an unmasked queue holds completions that the host has not consumed."""
        state = self.controller.state
        level = not self._by_message and any(
            queue.interrupts and queue.used and not state.interrupt_mask >> min(queue.vector, 31) & 1
            for queue in state.completion.values()
        )
        self.raised += level and not self.pin
        self._set_pin(level)

    def _set_pin(self, level: bool) -> None:
        self.pin = level
        self.controller.interrupts.intx.set_level(level)

    def reset(self) -> None:
        """Nothing is left to tell."""
        self._marked.clear()
        self._held.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._set_pin(False)
