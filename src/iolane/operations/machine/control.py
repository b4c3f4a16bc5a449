"""A machine as its control socket sees it: each request becomes a call of the machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from iolane.carriers.control import (
    ConsoleText,
    Done,
    FollowEvents,
    MachineReport,
    MachineRequest,
    MachineStream,
    PauseMachine,
    PlugDevice,
    ResumeMachine,
    ShowConsole,
    ShowMachine,
    StopMachine,
    UnplugDevice,
    Unplugged,
)
from iolane.carriers.control.migration_messages import CancelMigration
from iolane.engines.qemu.console import Console
from iolane.errors import IolaneError

if TYPE_CHECKING:
    from iolane.operations.machine.machine import Machine


class MachineControl:
    """Called in the control socket's threads."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def report(self) -> MachineReport:
        """The machine as it is now."""
        return self._machine.report()

    def console(self) -> Console:
        """Its console."""
        return self._machine.console

    def perform(self, request: MachineRequest) -> msgspec.Struct:
        """One request, one reply."""
        machine = self._machine
        match request:
            case ShowMachine():
                return machine.report()
            case PauseMachine():
                machine.pause()
            case ResumeMachine():
                machine.resume()
            case StopMachine():
                machine.stopped_by = "iolane stop"
                if request.force:
                    machine.abort()
                else:
                    machine.powerdown(request.timeout)
            case PlugDevice():
                return self._plug(request)
            case UnplugDevice():
                return Unplugged(machine.unplug(request.device, request.timeout).value)
            case CancelMigration():
                machine.moves.cancel()
            case ShowConsole():
                return ConsoleText(machine.console.text())
        return Done()

    def follow(
        self, request: MachineStream, take: Callable[[msgspec.Struct | None], None]
    ) -> Callable[[], None]:
        """Messages from now on, the last of them None. Returns the call that ends it."""
        if isinstance(request, FollowEvents):
            return self._machine.follow(take)
        from iolane.operations.migration.control import follow_migration

        return follow_migration(self._machine, request, take)

    def _plug(self, request: PlugDevice) -> msgspec.Struct:
        if bool(request.device) == bool(request.passed):
            raise IolaneError("plug either a device or a function of the host")
        if request.passed:
            return self._machine.plug_passed(request.passed, port=request.port)
        folder = None if request.folder is None else Path(request.folder)
        return self._machine.plug(request.device, folder=folder, port=request.port)
