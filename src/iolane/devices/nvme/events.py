"""Asynchronous events (Base 5.2): requests wait for them, a type is masked until its log is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iolane.devices.nvme.spec import EVENT_REQUEST_LIMIT, CommandError, EventType, LogId, Status
from iolane.devices.nvme.state import Event, EventState

if TYPE_CHECKING:
    from iolane.devices.nvme.controller import Nvme

_LOGS = {
    LogId.ERROR_INFORMATION: EventType.ERROR,
    LogId.SMART: EventType.SMART,
    LogId.CHANGED_NAMESPACES: EventType.NOTICE,
}
"""Reading the log page clears the events of the type."""


class AsyncEvents:
    """Brings events and Asynchronous Event Requests together."""

    def __init__(self, controller: Nvme) -> None:
        self.controller = controller

    @property
    def state(self) -> EventState:
        return self.controller.state.events

    def request(self, cid: int) -> None:
        """An Asynchronous Event Request: it completes when there is an event."""
        if len(self.state.requests) >= EVENT_REQUEST_LIMIT:
            raise CommandError(Status.ASYNC_EVENT_LIMIT)
        self.state.requests.append(cid)
        self.deliver()

    def holds(self, cid: int) -> bool:
        """Whether a request with this identifier waits."""
        return cid in self.state.requests

    def abort(self, cid: int) -> bool:
        """Complete the request as aborted. False when there is none."""
        if cid not in self.state.requests:
            return False
        self.state.requests.remove(cid)
        self.controller.completions.post(0, cid, Status.ABORT_REQUESTED)
        return True

    def report(self, kind: EventType, information: int, log: LogId) -> None:
        """Something happened. An event that waits already is not reported twice."""
        event = Event(kind, information, log)
        if event not in self.state.pending:
            self.state.pending.append(event)
        self.deliver()

    def log_read(self, log: int) -> None:
        """The host read a log page without Retain Asynchronous Event: its type of events is unmasked."""
        for page, kind in _LOGS.items():
            if page == log and kind in self.state.masked:
                self.state.masked.remove(kind)
        self.deliver()

    def deliver(self) -> None:
        """Complete requests with the events that are not masked (Base 5.2.1, Figure 145)."""
        state = self.state
        for event in list(state.pending):
            if not state.requests:
                return
            if event.kind in state.masked:
                continue
            state.pending.remove(event)
            state.masked.append(event.kind)
            result = event.kind | event.information << 8 | event.log << 16
            self.controller.completions.post(0, state.requests.pop(0), Status.SUCCESS, result)

    def reset(self) -> None:
        """Requests and events are forgotten (Base 3.7.2)."""
        self.controller.state.events = EventState()
