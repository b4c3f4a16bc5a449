"""What every engine's machine can do, for operations that do not care which engine it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from iolane.carriers.control.machine_messages import MachineEvent
from iolane.engines.outcome import UnplugOutcome
from iolane.engines.qemu.agent import CommandResult
from iolane.engines.qemu.command_line import MachineDevice
from iolane.engines.qemu.console import Console

EventFunction = Callable[[MachineEvent], None]


class EngineMachine(Protocol):
    """A guest on an engine. Its owner starts it and stops it; anybody may do the rest, from any thread."""

    @property
    def on_event(self) -> EventFunction | None:
        """Called with each event, in order, in a thread of the machine's that may wait."""

    @on_event.setter
    def on_event(self, call: EventFunction | None) -> None: ...

    def start(self) -> None:
        """Start it; on any failure everything is cleaned up again."""

    def stop(self) -> None:
        """End it at once and free all it held. Harmless when repeated. The owner's alone."""

    def abort(self) -> None:
        """End it at once, from any thread; whoever waits for the guest learns of it."""

    def pause(self) -> None:
        """Hold its processors."""

    def resume(self) -> None:
        """Let them go on."""

    def ask_powerdown(self) -> None:
        """Ask the guest to power itself off, and return."""

    def wait_end(self, timeout: float | None = None) -> bool:
        """Wait until it has ended by itself; False when it has not in time."""

    def reset(self, timeout: float | None = None) -> None:
        """The reset button."""

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""

    @property
    def paused(self) -> bool:
        """Whether its processors stand still."""

    @property
    def pid(self) -> int:
        """The process that is the guest."""

    @property
    def console(self) -> Console:
        """The guest's console."""

    def run(
        self, command: str | Sequence[str], *, stdin: bytes = b"", timeout: float = 60.0
    ) -> CommandResult:
        """Run a shell command in the guest, where it has iolane's agent."""

    def plug(self, device: MachineDevice) -> MachineDevice:
        """Plug a device in; the device with the root port that it got. Raises IolaneError."""

    def unplug(self, identity: str, timeout: float = 30.0) -> UnplugOutcome:
        """Ask the guest to let go of a device, and wait for up to `timeout` seconds. Raises IolaneError
        where the engine would not survive it."""

    @property
    def plugged(self) -> list[MachineDevice]:
        """What is plugged in, with ports."""

    @property
    def leaving(self) -> frozenset[str]:
        """Devices that the guest was asked to let go of, and has not yet."""

    def why_not_unplug(self, identity: str) -> str | None:
        """Why the engine refuses to unplug a device; None where it does not."""
