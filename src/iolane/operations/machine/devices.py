"""The devices of a machine: their servers and functions, which come and go while it runs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from iolane.carriers.control import ControlServer, DeviceReport
from iolane.devices.specification import Carrier, DeviceSpecification, parse
from iolane.engines.qemu.command_line import MachineDevice, VfioUserDevice
from iolane.engines.qemu.vhost_user import VhostUserDevice
from iolane.errors import IolaneError
from iolane.model.pci import PcieId
from iolane.operations.machine.anchor import anchored
from iolane.operations.machine.description import DeviceDescription, MachineDescription
from iolane.operations.machine.presentation import removable
from iolane.operations.passthrough import PassedFunctions, parse_pass
from iolane.operations.served_device import ServedDevice
from iolane.operations.serving import DeviceServers, Endpoint, Served, image_problems, images_in_use

EMULATED, PARAVIRTUAL, PASSTHROUGH = "emulated", "paravirtual", "passthrough"
VIRTIO = ("block", "net", "console", "rng")


@dataclass(frozen=True)
class Held:
    """A device of the machine, with what the user asked for."""

    description: DeviceDescription
    device: MachineDevice
    lane: str
    carrier: str
    hot: bool = False
    endpoint: Path | None = None


class MachineDevices:
    """All devices of one machine while it is entered. Methods are called by one at a time."""

    def __init__(self, description: MachineDescription, name: str, control: ControlServer) -> None:
        self._description = description
        self._control = control
        self._specifications = [parse(each.text) for each in description.placed]
        self.passed = PassedFunctions(description.requests, description.trace, name)
        self._servers: DeviceServers | None = None
        self._stack = ExitStack()
        self._held: dict[str, Held] = {}
        self._paused: list[ServedDevice] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.passed)
            self._servers = stack.enter_context(
                DeviceServers(
                    [each.text for each in self._description.placed],
                    trace=self._description.trace,
                    beside=self.passed.mediated,
                    holders=self.passed.holders,
                    control=self._control,
                )
            )
            self._hold_all(self._servers)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resume()
        self._stack.close()

    # What there is.

    @property
    def servers(self) -> DeviceServers:
        """The servers."""
        if self._servers is None:
            raise IolaneError("the machine has not been started", remedy="start it first")
        return self._servers

    @property
    def held(self) -> list[Held]:
        """Every device with what the user asked for."""
        return list(self._held.values())

    @property
    def devices(self) -> list[MachineDevice]:
        """What the engine connects to."""
        return [each.device for each in self._held.values()]

    @property
    def kinds(self) -> set[str]:
        """The names of the devices it began with: `nvme`, `block`."""
        return {each.name for each in self._specifications}

    @property
    def specifications(self) -> list[DeviceSpecification]:
        """What it began with, taken apart."""
        return self._specifications

    @property
    def addresses(self) -> set[PcieId]:
        """The functions of the host that it has, also those that come later."""
        return self.passed.addresses

    def served(self, identity: str) -> Served | None:
        """A device that this process serves; None where another does, or where there is none."""
        found = [each for each in [*self.servers.served, *self.passed.mediated] if each.name == identity]
        return found[0] if found else None

    def reports(self) -> list[DeviceReport]:
        """Every device as it is now, but those that others serve."""
        return self.servers.reports()

    def described(
        self, placed: list[MachineDevice]
    ) -> tuple[list[DeviceDescription], list[DeviceDescription]]:
        """Devices and passed functions as they are now, with their ports."""
        ports = {each.id: each.port for each in placed}
        found = [
            (each.lane, DeviceDescription(each.description.text, ports.get(each.device.id)))
            for each in self._held.values()
        ]
        ours = [description for lane, description in found if lane != PASSTHROUGH]
        return ours, [description for lane, description in found if lane == PASSTHROUGH]

    # Coming and going.

    def add(
        self, text: str, *, folder: Path | None = None, port: str | None = None
    ) -> tuple[Held, str | None]:
        """Make a device that is to be plugged in; with what is to be said about it. Nothing is left of it
        where that fails.
        """
        wanted, note = removable(anchored(parse(text), folder))
        if wanted.id in self._held:
            raise IolaneError(f"a device {wanted.id} is plugged in already", remedy="id=NAME gives another")
        endpoint = self.servers.add(wanted)
        try:
            self._refuse_image_in_use(endpoint)
            held = _held_of(endpoint, wanted, port, hot=True)
        except IolaneError:
            self.servers.remove(endpoint.name)
            raise
        self._held[held.device.id] = held
        return held, note

    def _refuse_image_in_use(self, endpoint: Endpoint) -> None:
        if endpoint.served is not None:
            others = [each for each in self.servers.served if each is not endpoint.served]
            if problems := image_problems(endpoint.served, others):
                raise problems[0]

    def add_passed(self, text: str, *, port: str | None = None) -> Held:
        """Take a function of the host that is to be plugged in."""
        request = parse_pass(text)
        if request.id in self._held:
            raise IolaneError(f"a device {request.id} is plugged in already", remedy="id=NAME gives another")
        device = replace(self.passed.add(request), port=port)
        if (served := self.passed.served(request.id)) is not None:
            self.servers.add_beside(served)
        self._control.add_holder(self.passed.holder(request.id))
        carrier = "vfio-user" if isinstance(device, VfioUserDevice) else "vfio"
        held = Held(DeviceDescription(text, port), device, PASSTHROUGH, carrier, hot=True)
        self._held[device.id] = held
        return held

    def remove(self, identity: str) -> None:
        """The engine has let go of a device: end its server, or give it back. Again does nothing."""
        held = self._held.pop(identity, None)
        if held is None:
            return
        if held.lane == PASSTHROUGH:
            self._control.remove_holder(self.passed.holder(identity))
            self.servers.remove_beside(identity)
            self.passed.remove(identity)
        else:
            self.servers.remove(identity)

    def pause(self) -> None:
        """Hold the devices that QEMU does not hold itself: tasks end, their clocks stand still."""
        if not self._paused:
            for served in self.servers.served:
                if isinstance(served, ServedDevice):
                    served.device.pause()
                    self._paused.append(served)

    def resume(self) -> None:
        """Let them go on. Without a pause it does nothing."""
        while self._paused:
            self._paused.pop().device.resume()

    def check_boot(self) -> None:
        """Refuse to boot from a device that is not there."""
        boot = self._description.boot
        if boot is not None and boot not in self._held:
            raise IolaneError(
                f"there is no device '{boot}' to boot from",
                remedy=f"there are: {', '.join(self._held) or 'none'}",
            )

    def refuse_images_in_use(self) -> None:
        """Raise IolaneError where a disk's image is in use, by others or twice."""
        if problems := images_in_use(self.servers):
            raise problems[0]

    def _hold_all(self, servers: DeviceServers) -> None:
        described = self._description.placed
        for endpoint, specification, each in zip(
            servers.endpoints, self._specifications, described, strict=True
        ):
            held = _held_of(endpoint, specification, each.port, hot=False)
            self._held[held.device.id] = held
        for device, each in zip(self.passed.devices, self._description.placed_functions, strict=True):
            carrier = "vfio-user" if isinstance(device, VfioUserDevice) else "vfio"
            placed = replace(device, port=each.port)
            self._held[device.id] = Held(each, placed, PASSTHROUGH, carrier)


def machine_device(endpoint: Endpoint) -> MachineDevice:
    """What the machine connects to an endpoint with."""
    kind = endpoint.virtio
    if kind is None:
        return VfioUserDevice(endpoint.name, endpoint.socket, virtual=endpoint.virtual)
    return VhostUserDevice(
        endpoint.name,
        endpoint.socket,
        kind.type,
        kind.queues,
        kind.queue_size,
        mac=kind.mac,
        standby=kind.standby,
    )


def _held_of(endpoint: Endpoint, wanted: DeviceSpecification, port: str | None, *, hot: bool) -> Held:
    device = replace(machine_device(endpoint), port=port)
    named = msgspec.structs.replace(wanted, id=endpoint.name)
    carrier = Carrier.VFIO_USER if endpoint.virtio is None else Carrier.VHOST_USER
    paravirtual = endpoint.virtio is not None or wanted.name in VIRTIO
    return Held(
        description=DeviceDescription(named.whole_text(), port),
        device=device,
        lane=PARAVIRTUAL if paravirtual else EMULATED,
        carrier=str(carrier.value),
        hot=hot,
        endpoint=endpoint.socket,
    )
