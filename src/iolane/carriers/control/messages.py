"""What is said on a control socket: one JSON object a line, requests and replies, and events if asked for."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from iolane.carriers.control.machine_messages import (
    MachineReport,
    MachineRequest,
    MachineStream,
    OpenConsole,
)
from iolane.host.holding import HeldFunction

LINE_LIMIT = 64 * 1024
"""A request longer than this closes the connection."""
REPLY_LIMIT = 16 << 20

TraceLevelName = Literal["off", "counters", "registers", "fields"]


class ListDevices(msgspec.Struct, frozen=True, tag_field="do", tag="devices", forbid_unknown_fields=True):
    """Report the serving process and its devices with their counters."""


class SetTrace(msgspec.Struct, frozen=True, tag_field="do", tag="trace", forbid_unknown_fields=True):
    """Set a device's trace level; with `follow`, events come on this connection until it closes."""

    device: str
    level: TraceLevelName
    filter: str | None = None
    direction: Literal["read", "write"] | None = None
    json: bool = False
    follow: bool = False


class ResetDevice(msgspec.Struct, frozen=True, tag_field="do", tag="reset", forbid_unknown_fields=True):
    """Reset a device as a conventional reset or a function-level reset would; the guest's driver notices."""

    device: str
    kind: Literal["conventional", "flr"] = "conventional"


class SaveDevice(msgspec.Struct, frozen=True, tag_field="do", tag="save", forbid_unknown_fields=True):
    """Save the state of a device that no guest has, into a new file for the device's `state=`."""

    device: str
    file: str


class ListHeld(msgspec.Struct, frozen=True, tag_field="do", tag="held", forbid_unknown_fields=True):
    """Report the physical functions that the serving process holds, with what they reach by DMA."""


Request = (
    ListDevices
    | SetTrace
    | ResetDevice
    | SaveDevice
    | ListHeld
    | MachineRequest
    | MachineStream
    | OpenConsole
)


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """One device as it is now."""

    name: str
    type: str
    endpoint: str
    connected: bool
    interrupt_mode: str
    trace: str
    counters: dict[str, int]
    statistics: dict[str, int | float | str]
    unmodelled: list[str] = []
    """Registers the guest touched that the device does not model."""
    faults: list[str] = []
    """The latest refused DMA accesses."""
    accesses: dict[str, tuple[int, int]] = {}
    """Register -> reads and writes, counted while it was traced."""
    spins: list[str] = []
    """Notices of a guest that reads one register over and over, while it was traced."""
    problem: str | None = None
    """What went wrong with its server."""
    running: bool = True
    """Its server serves."""


class ServerReport(msgspec.Struct, frozen=True, kw_only=True):
    """One serving process."""

    pid: int
    command: str
    started: float
    """Seconds since the epoch."""
    version: str
    devices: list[DeviceReport]
    machine: MachineReport | None = None
    """The machine that it runs."""


class HeldReport(msgspec.Struct, frozen=True):
    """The reply to `ListHeld`."""

    held: list[HeldFunction]


class Done(msgspec.Struct, frozen=True):
    """The reply to a request that has nothing to report."""

    done: bool = True


class Refusal(msgspec.Struct, frozen=True):
    """The reply to a request that could not be served."""

    error: str
    remedy: str | None = None


class Event(msgspec.Struct, frozen=True):
    """One traced access: a line of text, or an object when `json` was asked for."""

    event: str | dict[str, Any]
    lost: int = 0
    """Events dropped just after this one because the reader was too slow."""
