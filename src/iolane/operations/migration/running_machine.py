"""A machine of this process as what does not move along with it needs it."""

from __future__ import annotations

from iolane.carriers.control import ControlClient, find_device
from iolane.engines.outcome import UnplugOutcome
from iolane.engines.qemu.command_line import VfioUserDevice
from iolane.engines.qemu.guest_address import guest_address
from iolane.errors import IolaneError
from iolane.model.pci import PcieId
from iolane.operations.machine import Machine
from iolane.operations.machine.devices import Held
from iolane.operations.migration.disk_use import Answer
from iolane.operations.migration.state_file import keep, path_for, with_state


class RunningMachine:
    """Satisfies `MachineInMove`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def run(self, command: str, *, timeout: float) -> Answer:
        """Run a shell command in the guest; refused while one runs."""
        self._machine.qemu.refuse_busy()
        return self._machine.run(command, timeout=timeout)

    def guest_address(self, identity: str) -> PcieId:
        """Where the guest finds a device."""
        return guest_address(self._machine.qemu.qmp, identity)

    def why_not_unplug(self, identity: str) -> str | None:
        """Why the engine refuses to unplug a device; None where it does not."""
        return self._machine.guest.why_not_unplug(identity)

    def take_out(self, identity: str, timeout: float) -> UnplugOutcome:
        """Unplug a device; its server goes on, and its function stays taken."""
        return self._machine.guest.unplug(identity, timeout)

    def put_back(self, identity: str) -> None:
        """Plug in what `take_out` took out, as it is now."""
        self._machine.guest.plug(self._held(identity).device)

    def saved(self, identity: str) -> bytes:
        """The state of a device that was taken out."""
        served = self._machine.devices.served(identity)
        if served is not None:
            return served.save()
        file = path_for(identity)
        path, _ = find_device(self._owner(identity))
        try:
            with ControlClient(path) as client:
                client.save(identity, file)
            return file.read_bytes()
        except OSError as error:
            raise IolaneError(f"{file}: {(error.strerror or str(error)).lower()}") from error
        finally:
            file.unlink(missing_ok=True)

    def end(self, identity: str) -> None:
        """End the server of a device that was taken out, and free its image."""
        self._machine.devices.remove(identity)

    def plug(self, text: str, port: str | None) -> None:
        """Make a device and plug it in."""
        self._machine.plug(text, port=port)

    def plug_passed(self, text: str, port: str | None) -> None:
        """Take a function of this host and plug it in."""
        self._machine.plug_passed(text, port=port)

    def _held(self, identity: str) -> Held:
        for held in self._machine.devices.held:
            if held.device.id == identity:
                return held
        raise IolaneError(f"machine {self._machine.name} has no device {identity}")

    def _owner(self, identity: str) -> str:
        """PID/NAME of a device that has a process of its own."""
        for endpoint in self._machine.devices.servers.endpoints:
            if endpoint.name == identity and endpoint.process is not None:
                return f"{endpoint.process.pid}/{identity}"
        return identity


def keep_state(machine: Machine, identity: str) -> str | None:
    """A device left when nobody waited for it, or by the guest's own doing: its state is kept. In words, with
    the way to plug it in again; None where it has none that can be had.
    """
    for held in machine.devices.held:
        if held.device.id == identity and isinstance(held.device, VfioUserDevice):
            try:
                file = keep(identity, RunningMachine(machine).saved(identity))
            except IolaneError:
                return None
            text = with_state(held.description.text, file)
            return f"its state is kept in {file}: iolane plug {machine.name} '{text}'"
    return None
