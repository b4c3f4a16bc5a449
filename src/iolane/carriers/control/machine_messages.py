"""What is said on a control socket about the machine that its process runs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

from iolane.carriers.control.migration_messages import CancelMigration, MigrateMachine, ResolveMigration

Name = Annotated[str, msgspec.Meta(max_length=256)]
Text = Annotated[str, msgspec.Meta(max_length=16384)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]


class MachineState(StrEnum):
    """What a machine does now."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    INCOMING = "incoming"
    """It waits for the guest of another machine, its processors stand still."""
    MIGRATING = "migrating"
    IN_DOUBT = "in-doubt"
    """It stands still until somebody says which side of a migration goes on."""
    ENDED = "ended"


class EventKind(StrEnum):
    """What happened to a machine."""

    STARTED = "started"
    PAUSED = "paused"
    RESUMED = "resumed"
    RESET = "reset"
    SHUTDOWN = "shutdown"
    """The guest powered itself off, or restarted where that ends the machine."""
    PANICKED = "panicked"
    PLUGGED = "plugged"
    UNPLUGGED = "unplugged"
    UNPLUG_REFUSED = "unplug-refused"
    UNPLUG_UNANSWERED = "unplug-unanswered"
    SERVER_LOST = "server-lost"
    """A device's server has gone, and the guest's device is dead."""
    MIGRATION = "migration"
    ENDED = "ended"


class MachineEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened to a machine."""

    kind: EventKind
    time: float
    """Seconds since the epoch."""
    device: str | None = None
    """The device it is about."""
    text: str = ""
    """Details, in words."""
    lost: int = 0
    """Events dropped just before this one because their reader was too slow."""


class PluggedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device of a machine."""

    id: str
    what: str
    """As the user wrote it: `nvme,image=disk.raw`, or a function's address."""
    lane: str
    carrier: str
    """vfio-user, vhost-user or vfio"""
    port: str | None = None
    """The root port it sits behind."""
    endpoint: str | None = None
    """The socket of its server; None where the engine has the function itself."""
    hot: bool = False
    """Plugged in while the machine ran."""
    leaving: bool = False
    """The guest was asked to let go of it, and has not answered in time."""
    note: str = ""
    """What its user should know of how it was plugged in."""
    unplug_refused: str | None = None
    """Why it can't be unplugged, where that is known."""


class MachineReport(msgspec.Struct, frozen=True, kw_only=True):
    """A machine as it is now."""

    name: str
    pid: int
    """Of the process that runs it, which has its control socket."""
    state: MachineState
    engine: str
    memory_mib: int
    cpus: int
    started: float
    """Seconds since the epoch."""
    ports: int = 0
    free_ports: int = 0
    engine_pid: int | None = None
    devices: list[PluggedDevice] = []
    events: list[MachineEvent] = []
    """The latest."""


# Requests.


class ShowMachine(msgspec.Struct, frozen=True, tag_field="do", tag="machine", forbid_unknown_fields=True):
    """Report the machine; the reply is a `MachineReport`."""


class PauseMachine(msgspec.Struct, frozen=True, tag_field="do", tag="pause", forbid_unknown_fields=True):
    """Hold the machine's processors and its devices."""


class ResumeMachine(msgspec.Struct, frozen=True, tag_field="do", tag="resume", forbid_unknown_fields=True):
    """Let them go on."""


class StopMachine(msgspec.Struct, frozen=True, tag_field="do", tag="stop", forbid_unknown_fields=True):
    """Have the guest power itself off and wait for the end; with `force` end the machine at once."""

    force: bool = False
    timeout: Seconds = 30.0


class PlugDevice(msgspec.Struct, frozen=True, tag_field="do", tag="plug", forbid_unknown_fields=True):
    """Make a device and plug it in; the reply is a `PluggedDevice`."""

    device: Text = ""
    """NAME[,key=value...], as `iolane run --device` takes it."""
    passed: Text = ""
    """Or ADDRESS[,key=value...], as `iolane run --pass` takes it."""
    folder: Text | None = None
    """What relative paths in it are relative to; by default the folder of the machine's process."""
    port: Name | None = None


class UnplugDevice(msgspec.Struct, frozen=True, tag_field="do", tag="unplug", forbid_unknown_fields=True):
    """Ask the guest to let go of a device; the reply is an `Unplugged`."""

    device: Name
    timeout: Seconds = 30.0


class ShowConsole(
    msgspec.Struct, frozen=True, tag_field="do", tag="show-console", forbid_unknown_fields=True
):
    """Tell what the console has shown, the last of it; the reply is a `ConsoleText`."""


class OpenConsole(msgspec.Struct, frozen=True, tag_field="do", tag="console", forbid_unknown_fields=True):
    """The connection becomes the machine's console behind the reply, raw in both directions."""

    replay: bool = True
    """Begin with what it has shown so far."""


class FollowEvents(msgspec.Struct, frozen=True, tag_field="do", tag="events", forbid_unknown_fields=True):
    """`MachineEvent`s come on this connection until it closes or the machine has ended."""


MachineRequest = (
    ShowMachine
    | PauseMachine
    | ResumeMachine
    | StopMachine
    | PlugDevice
    | UnplugDevice
    | ShowConsole
    | CancelMigration
)
"""Requests with one reply."""
MachineStream = FollowEvents | MigrateMachine | ResolveMigration
"""Requests with `Done`, then messages until either side closes."""


class Unplugged(msgspec.Struct, frozen=True):
    """The reply to `UnplugDevice`: an outcome that is no error."""

    outcome: str
    """agreed, refused or no-answer"""


class ConsoleText(msgspec.Struct, frozen=True):
    """The reply to `ShowConsole`."""

    text: str
