"""The controller's health: counters and conditions of the SMART log (Base 5.16.1.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iolane.devices.nvme.spec import CriticalWarning, EventType, LogId, SmartEvent
from iolane.devices.nvme.structures import Page

if TYPE_CHECKING:
    from iolane.devices.nvme.controller import Nvme
    from iolane.devices.nvme.state import HealthState

WARNING_TEMPERATURE = 343
CRITICAL_TEMPERATURE = 353
"""Kelvin: WCTEMP and CCTEMP."""
SPARE_THRESHOLD = 10
DATA_UNIT = 512_000
"""Bytes that Data Units Read and Written count in."""
MINUTE = 60_000_000_000
HOUR = 60 * MINUTE

_EVENTS = {
    CriticalWarning.SPARE: SmartEvent.SPARE,
    CriticalWarning.TEMPERATURE: SmartEvent.TEMPERATURE,
    CriticalWarning.RELIABILITY: SmartEvent.RELIABILITY,
    CriticalWarning.READ_ONLY: SmartEvent.RELIABILITY,
}


class Health:
    """Counts what the controller does, and raises an event for each condition that becomes critical."""

    def __init__(self, controller: Nvme) -> None:
        self.controller = controller
        self._accounted_at = controller.clock.now_ns()
        self._active = 0

    @property
    def state(self) -> HealthState:
        return self.controller.state.health

    def restart_clock(self) -> None:
        """Time counts from now on: the state was loaded."""
        self._accounted_at = self.controller.clock.now_ns()

    def account(self) -> None:
        """Add the time since the last call to the counters of time."""
        now = self.controller.clock.now_ns()
        passed, self._accounted_at = max(now - self._accounted_at, 0), now
        state = self.state
        state.powered_ns += passed
        if self._active:
            state.busy_ns += passed
        if state.temperature >= CRITICAL_TEMPERATURE:
            state.critical_ns += passed
        elif state.temperature >= WARNING_TEMPERATURE:
            state.warning_ns += passed

    def started(self) -> None:
        """An I/O command is being executed."""
        if self._active == 0:
            self.account()
        self._active += 1

    def finished(self) -> None:
        """It no longer is."""
        if self._active == 1:
            self.account()
        self._active = max(self._active - 1, 0)

    def set(
        self,
        *,
        temperature: int | None = None,
        spare: int | None = None,
        used: int | None = None,
        reliable: bool | None = None,
    ) -> None:
        """Change what the controller says of its health (kelvin, percent, percent)."""
        self.account()
        state = self.state
        state.temperature = state.temperature if temperature is None else temperature
        state.spare = state.spare if spare is None else spare
        state.used = state.used if used is None else used
        state.reliable = state.reliable if reliable is None else reliable
        self.check()

    def warnings(self) -> CriticalWarning:
        """Conditions that are critical now."""
        state, features = self.state, self.controller.features.values
        found = CriticalWarning(0)
        if state.spare < SPARE_THRESHOLD:
            found |= CriticalWarning.SPARE
        if state.temperature >= features.over_temperature or state.temperature <= features.under_temperature:
            found |= CriticalWarning.TEMPERATURE
        if not state.reliable:
            found |= CriticalWarning.RELIABILITY
        return found

    def check(self) -> None:
        """Raise an event for each critical condition that is new and that the host wants to hear of."""
        state, found = self.state, self.warnings()
        fresh = found & ~state.reported_warnings & self.controller.features.values.async_events & 0xFF
        state.reported_warnings = int(found & state.reported_warnings | fresh)
        for warning, event in _EVENTS.items():
            if fresh & warning:
                self.controller.events.report(EventType.SMART, event, LogId.SMART)

    def page(self) -> Page:
        """SMART / Health Information log page (Base 5.16.1.3, Figure 207)."""
        self.account()
        state = self.state
        page = Page(512)
        page.put(0, 1, int(self.warnings()))
        page.put(1, 2, state.temperature)
        page.put(3, 1, state.spare)
        page.put(4, 1, SPARE_THRESHOLD)
        page.put(5, 1, state.used)
        counters = (
            -(-state.bytes_read // DATA_UNIT),
            -(-state.bytes_written // DATA_UNIT),
            state.reads,
            state.writes,
            state.busy_ns // MINUTE,
            state.power_cycles,
            state.powered_ns // HOUR,
            state.unsafe_shutdowns,
            state.media_errors,
            state.errors,
        )
        for place, counter in enumerate(counters):
            page.put(32 + 16 * place, 16, counter)
        page.put(192, 4, min(state.warning_ns // MINUTE, 0xFFFFFFFF))
        page.put(196, 4, min(state.critical_ns // MINUTE, 0xFFFFFFFF))
        return page
