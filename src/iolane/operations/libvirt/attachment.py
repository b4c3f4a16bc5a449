"""Attaching devices to a domain and detaching them: each with its server, and all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from iolane.carriers.control import is_served
from iolane.devices.registry import carrier_of
from iolane.devices.specification import DeviceSpecification, parse
from iolane.engines.libvirt.connection import Connection
from iolane.engines.libvirt.devices import DomainDevices
from iolane.engines.libvirt.domain import Domain
from iolane.engines.libvirt.elements import alias
from iolane.engines.libvirt.metadata import Attached
from iolane.engines.libvirt.requirements import has_alias, require_qemu, require_shared_memory
from iolane.engines.outcome import UnplugOutcome
from iolane.engines.qemu.command_line import MachineDevice
from iolane.engines.qemu.vfio import VfioPciDevice
from iolane.errors import IolaneError
from iolane.operations.libvirt.functions import check_function
from iolane.operations.libvirt.hook import is_installed, require_installed
from iolane.operations.libvirt.servers import socket_of, start_server, stop_server, stop_servers
from iolane.operations.machine.devices import machine_device
from iolane.operations.machine.presentation import removable
from iolane.operations.passthrough import PassRequest, parse_pass
from iolane.operations.service.paths import absolute, text_of
from iolane.operations.serving import Endpoint, virtio_kind

Report = Callable[[str], None]


class AttachRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be attached."""

    domain: str
    devices: Sequence[str] = ()
    """NAME[,key=value...] for each."""
    passed: Sequence[str] = ()
    """ADDRESS[,key=value...] for each function of this host."""
    uri: str | None = None
    persistent: bool = False
    """Also whenever it starts again. A domain that does not run is changed for good anyway."""


class AttachedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """What was attached."""

    domain: str
    id: str
    what: str
    carrier: str
    socket: str | None = None
    live: bool
    """The running guest has it."""
    persistent: bool
    """It is there whenever the domain starts."""
    notes: list[str] = []


class DetachedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """What was detached."""

    domain: str
    id: str
    outcome: UnplugOutcome | None
    """How the guest answered; None where the domain does not run."""


def attach(request: AttachRequest, report: Report) -> list[AttachedDevice]:
    """Attach all of them or none. Raises IolaneError."""
    functions = [parse_pass(text) for text in request.passed]
    wanted = [parse(text) for text in request.devices]
    with _here(request.uri) as connection, ExitStack() as undo:
        domain = connection.domain(request.domain)
        require_qemu(domain.document())
        done = [_attach_device(domain, each, request, undo) for each in wanted]
        done += [_attach_function(domain, each, request, undo) for each in functions]
        undo.pop_all()
    if any(each.socket is not None for each in done) and not is_installed():
        report(
            "libvirt does not call iolane: servers stay when the domain has ended, and none is there when it"
            " starts again; iolane libvirt-hook --install"
        )
    return done


def detach(
    domain_name: str, identity: str, *, uri: str | None = None, timeout: float = 30.0
) -> DetachedDevice:
    """Have the guest let go of a device, end its server, and have the domain start without it.

    Raises:
        IolaneError: the guest does not let go, and keeps the device; or QEMU would not survive it.
    """
    with _here(uri) as connection:
        domain = connection.domain(domain_name)
        devices, live = DomainDevices(domain), domain.running
        served = [each for each in domain.attached() if each.id == identity]
        kept = domain.attached(inactive=True) if domain.persistent else []
        if not served and not any(each.id == identity for each in kept):
            _require_function(domain, identity)
        outcome = None
        if live and _is_there(devices, identity):
            outcome = devices.unplug(identity, timeout)
            outcome.require(identity)
        if domain.persistent:
            devices.remove(identity)
            _remember(domain, [each for each in kept if each.id != identity], live=False)
        if live:
            _remember(domain, [each for each in domain.attached() if each.id != identity], live=True)
        stop_servers(served or [each for each in kept if each.id == identity])
        return DetachedDevice(domain=domain.name, id=identity, outcome=outcome)


def _attach_device(
    domain: Domain, wanted: DeviceSpecification, request: AttachRequest, undo: ExitStack
) -> AttachedDevice:
    live = domain.running
    persistent = request.persistent or not live
    if persistent and not domain.persistent:
        raise IolaneError(
            f"the domain {domain.name} is forgotten when it ends", remedy="leave out --persistent"
        )
    if persistent and not live:
        require_installed()
    present = domain.attached(inactive=not live)
    if wanted.socket is not None:
        raise IolaneError(
            f"device '{wanted.text}' is served elsewhere",
            remedy="`iolane serve` shows what to add to a domain for it; attach starts its server itself",
        )
    specification = absolute(_named(wanted, domain, present), Path.cwd())
    note = None
    if live:
        specification, note = removable(specification)
    attached = Attached(
        id=specification.id or "",
        device=text_of(specification),
        carrier=carrier_of(specification).value,
        socket=str(socket_of(domain.name, specification.id or "")),
        owner=domain.connection.qemu_owner(),
    )
    require_shared_memory(domain.document(inactive=not live), attached.id)
    if is_served(Path(attached.socket)):
        raise IolaneError(
            f"somebody serves {attached.socket} already", remedy="choose another id, or end that server"
        )
    if live:
        undo.callback(stop_server, attached)
        start_server(attached)
    device = _machine_device(specification, Path(attached.socket))
    _add(domain, device, live=live, persistent=persistent, undo=undo)
    if live:
        _remember(domain, [*domain.attached(), attached], live=True)
        undo.callback(_remember, domain, present, live=True)
    if persistent:
        before = domain.attached(inactive=True)
        _remember(domain, [*before, attached], live=False)
        undo.callback(_remember, domain, before, live=False)
    return AttachedDevice(
        domain=domain.name,
        id=attached.id,
        what=attached.device,
        carrier=attached.carrier,
        socket=attached.socket,
        live=live,
        persistent=persistent,
        notes=[] if note is None else [note],
    )


def _attach_function(
    domain: Domain, wanted: PassRequest, request: AttachRequest, undo: ExitStack
) -> AttachedDevice:
    """libvirt takes the function from its driver when the guest gets it, and gives it back (managed)."""
    live = domain.running
    persistent = request.persistent or not live
    if wanted.mediation is not None:
        raise IolaneError(f"pass '{wanted.text}': a mediated function can't be attached to a domain yet")
    notes = check_function(wanted.address, force=wanted.force)
    device = VfioPciDevice(wanted.id, wanted.address, rom=wanted.rom)
    _add(domain, device, live=live, persistent=persistent, undo=undo)
    return AttachedDevice(
        domain=domain.name,
        id=wanted.id,
        what=str(wanted.address),
        carrier="vfio",
        live=live,
        persistent=persistent,
        notes=notes,
    )


def _add(domain: Domain, device: MachineDevice, *, live: bool, persistent: bool, undo: ExitStack) -> None:
    devices = DomainDevices(domain)
    if persistent:
        devices.add(device)
        undo.callback(devices.remove, device.id)
    if live:
        devices.plug(device)
        undo.callback(devices.unplug, device.id, 10.0)


def _machine_device(specification: DeviceSpecification, socket: Path) -> MachineDevice:
    return machine_device(Endpoint(specification.id or "", socket, virtio_kind(specification)))


def _named(wanted: DeviceSpecification, domain: Domain, present: Sequence[Attached]) -> DeviceSpecification:
    """With an id that no other device of the domain has."""
    taken = {each.id for each in present}
    if wanted.id is not None:
        if wanted.id in taken:
            raise IolaneError(
                f"the domain {domain.name} has a device {wanted.id} already", remedy="choose another id"
            )
        return wanted
    stem = (
        "".join(letter for letter in wanted.name.rpartition(":")[2].lower() if letter.isalnum()) or "device"
    )
    number = 0
    while f"{stem}{number}" in taken:
        number += 1
    return msgspec.structs.replace(wanted, id=f"{stem}{number}")


def _remember(domain: Domain, devices: list[Attached], *, live: bool) -> None:
    domain.set_attached(devices, live=live, config=not live)


def _here(uri: str | None) -> Connection:
    """A connection to this host's libvirt, not open yet. Raises IolaneError for another's."""
    connection = Connection(uri)
    if not connection.is_local:
        raise IolaneError(
            f"{connection.uri} is another host, and devices are served where the domain runs",
            remedy="run iolane there",
        )
    return connection


def _require_function(domain: Domain, identity: str) -> None:
    if not has_alias(domain.document(), alias(identity)):
        names = ", ".join(sorted({each.id for each in domain.attached()})) or "none"
        raise IolaneError(
            f"the domain {domain.name} has no device {identity} of iolane's", remedy=f"there are: {names}"
        )


def _is_there(devices: DomainDevices, identity: str) -> bool:
    """Whether the running domain has it: one that was only added for its next start is not there yet."""
    try:
        devices.why_not_unplug(identity)
    except IolaneError:
        return False
    return True
