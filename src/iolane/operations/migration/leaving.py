"""A running machine of this process, as the source of a move."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from iolane.carriers.control import EventKind, MachineState
from iolane.devices.specification import parse
from iolane.devices.virtio.block import Block
from iolane.engines.qemu.command_line import Accelerator
from iolane.engines.qemu.migration import OutgoingMigration, announce
from iolane.engines.qemu.migration_settings import MigrationSettings
from iolane.engines.qemu.vfio import VfioPciDevice, moves_along
from iolane.engines.qemu.vhost_user import VhostUserDevice
from iolane.errors import IolaneError
from iolane.operations.machine.anchor import anchored
from iolane.operations.machine.description import is_file, is_path
from iolane.operations.machine.devices import EMULATED, PASSTHROUGH, Held
from iolane.operations.machine.machine import Machine
from iolane.operations.migration.images import offered_image
from iolane.operations.migration.offer import (
    Finding,
    LaterDevice,
    Offer,
    OfferedDevice,
    OfferedFunction,
    OfferedImage,
    OfferedKernel,
)
from iolane.operations.migration.preflight import IMAGE, file_digest, host_cpu_flags

WHY = {
    PASSTHROUGH: "it is a physical function, which stays where it is",
    EMULATED: "QEMU would lose its state",
}
WAY_OUT = {
    PASSTHROUGH: "--replug leaves it behind, where it has a stand-in in the guest",
    EMULATED: "--replug unplugs it, and plugs it in there with its state",
}


class LeavingGuest:
    """One move of one machine.

    Args:
        machine: what moves.
        beside: ids of devices that somebody takes out before it moves.
    """

    def __init__(self, machine: Machine, beside: Collection[str] = ()) -> None:
        self._machine = machine
        self._beside = frozenset(beside)
        self._was_paused = self._left = False

    def begin(self) -> None:
        """From here on nobody else changes the machine."""
        machine = self._machine
        self._was_paused = machine.guest.paused
        machine.hold("it is migrating", MachineState.MIGRATING)
        machine.tell_event(EventKind.MIGRATION, "begins")

    def offer(self) -> Offer:
        """What the other side is told. Raises IolaneError with everything that can't move."""
        machine, description = self._machine, self._machine.description
        movable = [held for held in machine.devices.held if held.device.id not in self._beside]
        functions = [held for held in movable if moves_itself(machine, held)]
        movable = [held for held in movable if held not in functions]
        if stays := [finding for held in movable if (finding := _stays(held))]:
            reasons = "; ".join(finding.problem for finding in stays)
            raise IolaneError(f"machine {machine.name} can't move: {reasons}", remedy=stays[0].remedy)
        machine.qemu.refuse_busy()
        ports = {device.id: device.port for device in machine.guest.plugged}
        config = machine.qemu.config
        assert config.qemu is not None
        assert config.accelerator is not None
        return Offer(
            name=machine.name,
            engine=str(config.qemu.version),
            accelerator=config.accelerator.value,
            memory_mib=description.memory_mib,
            cpus=description.cpus,
            ports=description.port_count,
            iommu=description.iommu,
            cpu_flags=host_cpu_flags() if config.accelerator is Accelerator.KVM else [],
            kernel=self._kernel(),
            boot=description.boot,
            paused=self._was_paused,
            devices=[self._device(held, ports.get(held.device.id)) for held in movable],
            functions=[
                OfferedFunction(id=held.device.id, port=ports.get(held.device.id)) for held in functions
            ],
            later=[self._later(held) for held in machine.devices.held if held.device.id in self._beside],
        )

    def outgoing(self, settings: MigrationSettings, on_end: Callable[[bool], object]) -> OutgoingMigration:
        """QEMU's side."""
        self._left = True
        return OutgoingMigration(self._machine.qemu.qmp, settings, on_end)

    def go_on(self) -> None:
        """It stays. Networks are told: QEMU announces a machine that has arrived before it is let go."""
        machine = self._machine
        machine.let_go()
        if self._left and not self._was_paused:
            machine.guest.resume()
            announce(machine.qemu.qmp)
        machine.tell_event(EventKind.MIGRATION, "the machine stays here")

    def doubt(self, reason: str) -> None:
        """It stands still, for as long as it takes."""
        machine = self._machine
        machine.hold(f"whether it has moved is in doubt: {reason}", MachineState.IN_DOUBT)
        machine.tell_event(EventKind.MIGRATION, f"in doubt: {reason}")

    def end(self, place: str) -> None:
        """It runs at `place`: the machine ends here, and its owner learns of it."""
        machine = self._machine
        machine.moved_to = place
        machine.tell_event(EventKind.MIGRATION, f"moved to {place}")
        machine.abort()

    # -- the offer ------------------------------------------------------------------------------------------

    def _device(self, held: Held, port: str | None) -> OfferedDevice:
        wanted = anchored(parse(held.description.text), None)
        device = held.device
        return OfferedDevice(
            id=device.id,
            text=anchored_text(held),
            port=port,
            mac=device.mac if isinstance(device, VhostUserDevice) else None,
            image=self._image(device.id, wanted.options),
        )

    def _later(self, held: Held) -> LaterDevice:
        if held.lane == PASSTHROUGH:
            return LaterDevice(id=held.device.id)
        return LaterDevice(id=held.device.id, text=anchored_text(held))

    def _image(self, identity: str, options: dict[str, list[str]]) -> OfferedImage | None:
        served = self._machine.devices.served(identity)
        if served is not None and isinstance(served.device, Block):
            disk = served.device
            if disk.image is None:
                raise IolaneError(f"disk {identity} has no image that another host could open")
            return offered_image(disk.image, read_only=disk.read_only, locked=disk.holds_image)
        if served is None and IMAGE in options:
            read_only = options.get("read_only", ["off"])[-1] == "on"
            return offered_image(Path(options[IMAGE][-1]), read_only=read_only, locked=None)
        return None

    def _kernel(self) -> OfferedKernel | None:
        description = self._machine.description
        if description.boot is not None:
            return None
        own = is_path(description.kernel)
        initrd = description.initrd
        return OfferedKernel(
            flavour=None if own else description.kernel,
            digest=file_digest(Path(description.kernel)) if own else None,
            initrd=None if initrd is None else file_digest(Path(initrd)),
            append=description.append,
            modules=[module for module in description.modules if not is_file(module)],
            built=sum(is_file(module) for module in description.modules),
        )


def anchored_text(held: Held) -> str:
    """What makes a device anew, from any folder."""
    wanted = anchored(parse(held.description.text), None)
    return msgspec.structs.replace(wanted, id=held.device.id).whole_text()


def moves_itself(machine: Machine, held: Held) -> bool:
    """Whether a device is a physical function that QEMU moves: its driver here reports that it can."""
    device = held.device
    return isinstance(device, VfioPciDevice) and moves_along(machine.qemu.qmp, device.address)


def _stays(held: Held) -> Finding | None:
    """Why a device can't move with the machine."""
    device = held.device
    if not isinstance(device, VhostUserDevice):
        lane = PASSTHROUGH if held.lane == PASSTHROUGH else EMULATED
        return Finding(f"{device.id}: {WHY[lane]}", WAY_OUT[lane])
    if device.frail:
        return Finding(f"{device.id}: QEMU's front end of it does not migrate", "unplug it first")
    return None
