"""What devices do a second: two looks at the same counters, and the time between them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from iolane.carriers.control import DeviceReport, MachineReport, PluggedDevice, ServerReport, serving

COUNTED = ("traps", "kicks", "interrupts", "dma_bytes_read", "dma_bytes_written")
"""Counters that have a rate; bytes as the device sees them: read from the guest's memory, written to it."""
TROUBLES = ("dma_faults", "rejected", "errors")


class DeviceRates(msgspec.Struct, frozen=True, kw_only=True):
    """One device in the interval."""

    machine: str | None
    """None: served to a guest that somebody else runs."""
    state: str
    """Of the machine."""
    device: str
    lane: str
    carrier: str
    counters: dict[str, int] | None
    """Since it was made; None where nobody here counts, as for a function that QEMU has itself."""
    rates: dict[str, float] | None
    """A second, in the interval; a device that came in it counts from nothing."""
    troubles: int = 0
    """Refused accesses, messages and errors since it was made."""


@dataclass(frozen=True)
class Look:
    """All serving processes at one moment."""

    servers: Sequence[ServerReport]
    times: dict[int, float] = field(default_factory=dict)
    """Process -> when it answered, by the monotonic clock (seconds)."""

    def counters(self) -> dict[tuple[int, str], dict[str, int]]:
        """Of every device, by process and name."""
        return {
            (server.pid, device.name): device.counters for server in self.servers for device in server.devices
        }

    def find(self, pid: int, plugged: PluggedDevice) -> tuple[int, DeviceReport] | None:
        """Who counts for a machine's device, and what: the process behind its socket, or the machine's."""
        for server in self.servers:
            for device in server.devices:
                own = server.pid == pid and device.name == plugged.id
                if own or (plugged.endpoint is not None and device.endpoint == plugged.endpoint):
                    return server.pid, device
        return None


def look() -> Look:
    """Ask every serving process of this user."""
    servers = [server for _, server in serving()]
    now = time.monotonic()
    return Look(servers, {server.pid: now for server in servers})


def rates(before: Look, after: Look) -> list[DeviceRates]:
    """Every device of `after`: those of machines in the machine's order, then those served on their own."""
    found: list[DeviceRates] = []
    shown: set[tuple[int, str]] = set()
    machines = [server for server in after.servers if server.machine is not None]
    for server in sorted(machines, key=lambda each: each.machine.name if each.machine else ""):
        assert server.machine is not None
        for plugged in server.machine.devices:
            where = after.find(server.pid, plugged)
            if where is not None:
                shown.add((where[0], where[1].name))
            found.append(_row(before, after, server.machine, plugged, where))
    for server in after.servers:
        for device in server.devices:
            if (server.pid, device.name) not in shown:
                found.append(_row(before, after, None, None, (server.pid, device)))
    return found


def _row(
    before: Look,
    after: Look,
    machine: MachineReport | None,
    plugged: PluggedDevice | None,
    where: tuple[int, DeviceReport] | None,
) -> DeviceRates:
    """One device: of a machine or served on its own (`plugged` None), counted by a process or not."""
    counters, changes, troubles = None, None, 0
    if where is not None:
        pid, seen = where
        elapsed = after.times[pid] - before.times.get(pid, after.times[pid])
        counters = {name: seen.counters.get(name, 0) for name in COUNTED}
        changes = _rates(before.counters().get((pid, seen.name), {}), seen.counters, elapsed)
        troubles = sum(seen.counters.get(name, 0) for name in TROUBLES)
    return DeviceRates(
        machine=None if machine is None else machine.name,
        state="served" if machine is None else machine.state.value,
        device=plugged.id if plugged is not None else where[1].name if where is not None else "",
        lane="" if plugged is None else plugged.lane,
        carrier="" if plugged is None else plugged.carrier,
        counters=counters,
        rates=changes,
        troubles=troubles,
    )


def _rates(before: dict[str, int], after: dict[str, int], elapsed: float) -> dict[str, float]:
    if elapsed <= 0:
        return dict.fromkeys(COUNTED, 0.0)
    found = {}
    for name in COUNTED:
        was, is_now = before.get(name, 0), after.get(name, 0)
        found[name] = (is_now - was if is_now >= was else is_now) / elapsed
    return found
