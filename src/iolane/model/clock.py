"""A device's time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from iolane.errors import IolaneError
from iolane.model.activity import Activity
from iolane.model.agenda import Agenda, Entry
from iolane.model.workers import Workers


class Timer:
    """A call that a clock will make. Kept by a device that wants to cancel it or save its deadline."""

    __slots__ = ("_clock", "_entry")

    def __init__(self, clock: Clock, entry: Entry) -> None:
        self._clock = clock
        self._entry = entry

    @property
    def deadline_ns(self) -> int:
        """When it is due, in the device's time."""
        return self._entry.deadline_ns

    @property
    def active(self) -> bool:
        """Whether the call is still to come."""
        return self._entry.call is not None

    @property
    def remaining_ns(self) -> int:
        """Nanoseconds until it is due; 0 when it is due or no longer active."""
        return max(0, self._entry.deadline_ns - self._clock.now_ns()) if self.active else 0

    def cancel(self) -> None:
        """Don't make the call. After this returns it has either been made or never will be."""
        self._clock.cancel(self)


class Clock:
    """The time of one device. It stands still while the device is paused; timers keep what remains of them.

    Without workers (the in-memory carrier) it moves only by `advance`. Time starts at 0, and goes on from the
    saved time when a state is loaded.
    """

    def __init__(self, lock: threading.Condition, activity: Activity) -> None:
        self._lock = lock
        self._activity = activity
        self._agenda = Agenda()
        self._base = 0
        """Device time at the last change of pace."""
        self._origin = 0
        """`monotonic_ns` at that moment."""
        self._frozen = False
        self._workers: Workers | None = None
        self._wake: Entry | None = None

    # For devices.

    def now_ns(self) -> int:
        """Nanoseconds of the device's life, pauses left out."""
        if self._workers is None or self._frozen:
            return self._base
        return self._base + time.monotonic_ns() - self._origin

    def call_after(self, ns: int, call: Callable[[], object]) -> Timer:
        """Make a call, under the device's lock, when `ns` nanoseconds have passed."""
        with self._lock:
            return self.call_at(self.now_ns() + max(0, ns), call)

    def call_at(self, deadline_ns: int, call: Callable[[], object]) -> Timer:
        """Make a call, under the device's lock, at a time of `now_ns`."""
        with self._lock:
            entry = self._agenda.push(deadline_ns, call)
            self._schedule()
            return Timer(self, entry)

    def cancel(self, timer: Timer) -> None:
        """See `Timer.cancel`."""
        with self._lock:
            self._agenda.cancel(timer._entry)

    @property
    def timers(self) -> int:
        """Calls to come."""
        return len(self._agenda)

    @property
    def manual(self) -> bool:
        """Whether time moves only by `advance`."""
        return self._workers is None

    # For tests: the in-memory carrier.

    def advance(self, ns: int) -> None:
        """Let `ns` nanoseconds pass and make the calls that become due, each at its own time.

        While the device is paused nothing happens: the time passes elsewhere.
        """
        if self._workers is not None:
            raise IolaneError(
                "the clock is driven by the carrier's threads", remedy="detach the device first"
            )
        with self._lock:
            if self._frozen:
                return
            target = self._base + ns
            while not self._frozen:
                deadline = self._agenda.next_deadline()
                entry = self._agenda.pop_due(target)
                if deadline is None or entry is None:
                    self._base = max(self._base, target)
                    return
                self._base = max(self._base, deadline)
                self._make(entry)

    # For the device's pause, reset and carrier.

    def freeze(self) -> None:
        """Stop the time."""
        self._base = self.now_ns()
        self._frozen = True
        self._forget_wake()

    def make_due(self) -> None:
        """Make the calls that are due and were asked for before now; those asked for meanwhile stay."""
        before = self._agenda.numbered
        while True:
            entry = self._agenda.pop_due(self.now_ns(), before)
            if entry is None:
                return
            self._make(entry)

    def thaw(self) -> None:
        """Let time go on."""
        self._origin = time.monotonic_ns()
        self._frozen = False
        self._schedule()

    def attach(self, workers: Workers | None) -> None:
        """Be driven by these threads from now on, or by `advance`. The time goes on from where it is."""
        self._base = self.now_ns()
        self._origin = time.monotonic_ns()
        self._forget_wake()
        self._workers = workers
        self._schedule()

    def forget_timers(self) -> None:
        """Cancel every timer."""
        self._agenda.clear()
        self._forget_wake()

    def set_now(self, now_ns: int) -> None:
        """Go on from a saved time."""
        self._base = now_ns
        self._origin = time.monotonic_ns()

    def _make(self, entry: Entry) -> None:
        call, entry.call = entry.call, None
        if call is not None:
            self._activity.begin()
            self._activity.finish("a timer", lambda made: made(), call)

    def _schedule(self) -> None:
        """See to it that the timer thread calls for the first deadline."""
        if self._workers is None or self._frozen:
            return
        deadline = self._agenda.next_deadline()
        if deadline is None:
            return
        wanted = self._origin + deadline - self._base
        if self._wake is not None:
            if self._wake.deadline_ns <= wanted:
                return
            self._forget_wake()
        self._wake = self._workers.wake_at(wanted, self._woken)

    def _forget_wake(self) -> None:
        if self._wake is not None and self._workers is not None:
            self._workers.cancel_wake(self._wake)
        self._wake = None

    def _woken(self) -> None:
        """The timer thread is here."""
        with self._lock:
            if self._frozen or self._workers is None:
                return
            self._wake = None
            self.make_due()
            self._schedule()
