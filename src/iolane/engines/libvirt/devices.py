"""iolane's devices in one domain: put in and taken out, in the running domain and in what libvirt keeps of
it."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import msgspec

from iolane.engines.libvirt.domain import Domain, MonitorError
from iolane.engines.libvirt.elements import (
    QEMU_NAMESPACE,
    alias,
    commandline_arguments,
    device_element,
    is_known_to_libvirt,
    port_of,
    reconnects,
    text,
)
from iolane.engines.libvirt.emulator import emulator_version
from iolane.engines.libvirt.requirements import (
    ROOT_PORT,
    free_disk_name,
    free_ports,
    has_alias,
    require_qemu,
    require_shared_memory,
    taken_root_slots,
)
from iolane.engines.outcome import UnplugOutcome
from iolane.engines.qemu.command_line import MachineDevice, VfioUserDevice
from iolane.engines.qemu.vfio import VfioPciDevice
from iolane.errors import IolaneError

ARGUMENT = f"{{{QEMU_NAMESPACE}}}arg"
COMMANDLINE = f"{{{QEMU_NAMESPACE}}}commandline"
MSIX_REFUSAL = "it presents MSI-X, and QEMU aborts when a vfio-user device with MSI-X is removed"


class DomainDevices:
    """The devices of one domain."""

    def __init__(self, domain: Domain, *, managed: bool = True) -> None:
        self.domain = domain
        self._managed = managed
        """libvirt takes functions of the host and gives them back."""

    # -- the running domain -------------------------------------------------------------------------------

    def plug(self, device: MachineDevice) -> None:
        """Hot-plug. Raises IolaneError with what the domain lacks."""
        document = self.domain.document()
        self._check(document, device)
        if is_known_to_libvirt(device):
            version = self.domain.monitor("query-version")["qemu"]
            numbers = (int(version["major"]), int(version["minor"]))
            element = self._element(device, document, numbers)
            self.domain.attach(text(element), live=True, config=False)
            return
        assert isinstance(device, VfioUserDevice)
        if device.virtual:
            raise IolaneError(
                f"{device.id} has virtual functions, which are made with the machine",
                remedy="attach it while the domain does not run",
            )
        port = device.port or self._free_port(document)
        try:
            self.domain.monitor("device_add", **device.properties(port))
        except MonitorError as error:
            raise IolaneError(
                f"device {device.id} cannot be plugged in: {error.message}", remedy=device.remedy
            ) from error

    def unplug(self, identity: str, timeout: float) -> UnplugOutcome:
        """Ask the guest to let go of a device and wait. Raises IolaneError where QEMU would not survive
        that."""
        if has_alias(self.domain.document(), alias(identity)):
            return self.domain.detach(alias(identity), timeout)
        if (reason := self.why_not_unplug(identity)) is not None:
            raise IolaneError(
                f"unplugging {identity} is refused: {reason}",
                remedy=f"attach {identity} with presentation=msi to unplug it, or shut the guest down",
            )
        return self.domain.monitor_delete(identity, timeout)

    def why_not_unplug(self, identity: str) -> str | None:
        """Why QEMU would not survive that the device is removed; None where it does.

        Raises:
            IolaneError: the domain has no such device.
        """
        if has_alias(self.domain.document(), alias(identity)):
            return None
        try:
            properties = self.domain.monitor("qom-list", path=f"/machine/peripheral/{identity}")
        except MonitorError:
            raise IolaneError(
                f"the domain {self.domain.name} has no device {identity} of iolane's",
                remedy=f"virsh dumpxml {self.domain.name} shows what it has",
            ) from None
        return MSIX_REFUSAL if any(each["name"].startswith("msix-table") for each in properties) else None

    def _free_port(self, document: str) -> str:
        """A root port with nothing behind it, by libvirt's account and by QEMU's: libvirt does not know of
        what came by the monitor."""
        empty = _empty_bridges(self.domain.monitor("query-pci"))
        port = next((port for port in free_ports(document) if port in empty), None)
        if port is None:
            raise IolaneError(
                f"the domain {self.domain.name} has no free root port",
                remedy=f"shut it down and add {ROOT_PORT} (virsh edit {self.domain.name})",
            )
        return port

    # -- what libvirt keeps -------------------------------------------------------------------------------

    def add(self, device: MachineDevice) -> None:
        """Have the domain have it whenever it starts."""
        document = self.domain.secure_document()
        self._check(document, device)
        if is_known_to_libvirt(device):
            emulator = ET.fromstring(document).findtext("devices/emulator", "")
            element = self._element(device, document, emulator_version(emulator))
            self.domain.attach(text(element), live=False, config=True)
            return
        assert isinstance(device, VfioUserDevice)
        if _mentions(document, device.id):
            raise IolaneError(f"the domain {self.domain.name} has a device {device.id} already")
        self.domain.connection.define(with_arguments(document, device))

    def remove(self, identity: str) -> bool:
        """Have the domain start without it; whether it was there."""
        document = self.domain.secure_document()
        if has_alias(document, alias(identity)):
            self.domain.detach_config(alias(identity))
            return True
        if not _mentions(document, identity):
            return False
        self.domain.connection.define(without_arguments(document, identity))
        return True

    def _element(self, device: MachineDevice, document: str, qemu: tuple[int, ...]) -> ET.Element:
        again = reconnects(self.domain.connection.version, qemu)
        return device_element(device, target=free_disk_name(document), reconnect=again, managed=self._managed)

    def _check(self, document: str, device: MachineDevice) -> None:
        require_qemu(document)
        if not isinstance(device, VfioPciDevice):
            require_shared_memory(document, device.id)
        if has_alias(document, alias(device.id)):
            raise IolaneError(
                f"the domain {self.domain.name} has a device {device.id} already", remedy="choose another id"
            )


def with_arguments(document: str, device: VfioUserDevice) -> str:
    """A domain's XML with a device that QEMU gets by its command line."""
    root = ET.fromstring(document)
    slots = sorted({*taken_root_slots(document), *_argument_slots(root)})
    commandline = root.find(COMMANDLINE)
    if commandline is None:
        commandline = ET.SubElement(root, COMMANDLINE)
    for argument in commandline_arguments([device], slots):
        ET.SubElement(commandline, ARGUMENT, value=argument)
    return text(root)


def without_arguments(document: str, identity: str) -> str:
    """A domain's XML without that device and its root port."""
    root = ET.fromstring(document)
    commandline = root.find(COMMANDLINE)
    if commandline is None:
        return document
    arguments = [each.get("value", "") for each in commandline.findall(ARGUMENT)]
    kept: list[str] = []
    for argument in arguments:
        if _is_of(argument, identity) and kept and kept[-1] == "-device":
            kept.pop()
        else:
            kept.append(argument)
    for each in commandline.findall(ARGUMENT):
        commandline.remove(each)
    for argument in kept:
        ET.SubElement(commandline, ARGUMENT, value=argument)
    if not len(commandline):
        root.remove(commandline)
    return text(root)


def _is_of(argument: str, identity: str) -> bool:
    """Whether an argument of -device, in JSON, makes the device, a virtual function of it, or its port."""
    properties = _json(argument)
    name = str(properties.get("id", ""))
    return name in (identity, port_of(identity)) or properties.get("bus") == port_of(identity)


def _mentions(document: str, identity: str) -> bool:
    root = ET.fromstring(document)
    return any(_is_of(each.get("value", ""), identity) for each in root.iter(ARGUMENT))


def _argument_slots(root: ET.Element) -> list[int]:
    every = [_json(each.get("value", "")) for each in root.iter(ARGUMENT)]
    return [int(str(each.get("addr", "0")), 16) for each in every if each.get("bus") == "pcie.0"]


def _json(argument: str) -> dict[str, Any]:
    try:
        decoded = msgspec.json.decode(argument)
    except msgspec.DecodeError:
        return {}
    return decoded if isinstance(decoded, dict) else {}


def _empty_bridges(buses: Any) -> set[str]:
    """QEMU's ids of the bridges with nothing behind them (qapi/pci.json, query-pci)."""
    return {
        device.get("qdev_id", "")
        for bus in buses
        for device in bus.get("devices", [])
        if "pci_bridge" in device and not device["pci_bridge"].get("devices")
    }
