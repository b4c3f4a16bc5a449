"""A machine's events: taken where nobody may wait, handled in order in a thread that may."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from iolane.carriers.control.machine_messages import EventKind, MachineEvent
from iolane.engines.qemu.qmp import Event

KEPT = 4096
"""Events that wait to be handled; more of those that a guest can cause at will are dropped."""
HANDLED = frozenset({"STOP", "RESUME", "RESET", "SHUTDOWN", "GUEST_PANICKED", "DEVICE_DELETED", "MIGRATION"})
"""Events of QEMU's (qapi/run-state.json, qdev.json, migration.json) that somebody here wants to know of."""
AT_WILL = frozenset({"RESET", "GUEST_PANICKED"})


class EventThread:
    """Calls `handle` for each piece of work that is put. The owner closes it, not from the thread itself."""

    def __init__(self, name: str) -> None:
        self._work: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"events {name}", daemon=True)
        self._thread.start()

    def put(self, work: Callable[[], None], *, droppable: bool = False) -> None:
        """Have `work` called in the thread, after what was put before."""
        with self._changed:
            if self._closed or (droppable and len(self._work) >= KEPT):
                return
            self._work.append(work)
            self._changed.notify_all()

    def close(self) -> None:
        """Handle what is there, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._work or self._closed)
                if not self._work:
                    return
                work = self._work.popleft()
            work()


def event(kind: EventKind, text: str = "", *, device: str | None = None) -> MachineEvent:
    """An event of this moment."""
    return MachineEvent(kind=kind, time=time.time(), device=device, text=text)


def translated(told: Event, panic: Callable[[], Sequence[str]]) -> MachineEvent | None:
    """One of QEMU's events as ours; None for what is told otherwise. `panic` finds a kernel's last words."""
    data = told.get("data", {})
    match told["event"]:
        case "STOP":
            return event(EventKind.PAUSED)
        case "RESUME":
            return event(EventKind.RESUMED)
        case "RESET":
            by = "the guest" if data.get("guest") else "iolane"
            return event(EventKind.RESET, f"reset by {by}")
        case "GUEST_PANICKED":
            return event(EventKind.PANICKED, "the guest's kernel says that it panicked")
        case "SHUTDOWN":
            return _shutdown(str(data.get("reason", "")), panic)
    return None


def _shutdown(reason: str, panic: Callable[[], Sequence[str]]) -> MachineEvent | None:
    if reason.startswith("host"):
        return None  # it is ended by us: its end is told
    if words := panic():
        return event(EventKind.PANICKED, words[-1])
    if reason == "guest-reset":
        return event(EventKind.SHUTDOWN, "the guest restarted, which ends the machine")
    return event(EventKind.SHUTDOWN, "the guest powered itself off")
