"""iolane's devices as libvirt writes them (libvirt's formatdomain), and as QEMU's arguments where it has no
element for them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from iolane.engines.qemu.command_line import MachineDevice, VfioUserDevice
from iolane.engines.qemu.vfio import VfioPciDevice
from iolane.engines.qemu.vhost_user import VhostUserDevice
from iolane.errors import IolaneError
from iolane.uapi.virtio import DeviceType

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
ALIAS_PREFIX = "ua-"
"""libvirt keeps aliases that begin so (formatdomain, "Device addresses and aliases"); others it makes."""
FIRST_SLOT, LAST_SLOT = 0x10, 0x17
"""Slots of the root bus for the root ports of devices that libvirt does not know of; libvirt fills the bus
from its beginning."""
FIRST_CHASSIS = 0x60
"""Chassis numbers of these ports (PCI Express Base, 7.5.3.9 with PCI-to-PCI bridge 11.3): libvirt gives its
own ports theirs by their index, from 1."""
RECONNECT_LIBVIRT = 11_000_000
NO_RECONNECT_QEMU = (10,)

ET.register_namespace("qemu", QEMU_NAMESPACE)


def alias(identity: str) -> str:
    """The alias of a device of iolane's in a domain."""
    return ALIAS_PREFIX + identity


def is_known_to_libvirt(device: MachineDevice) -> bool:
    """Whether libvirt has an element for the device; others it passes to QEMU unseen."""
    if isinstance(device, VhostUserDevice):
        return device.kind in (DeviceType.BLOCK, DeviceType.NET)
    return isinstance(device, VfioPciDevice)


def reconnects(libvirt: int, qemu: tuple[int, ...]) -> bool:
    """Whether this libvirt (its version as a number, 9000000 for 9.0.0) can have this QEMU connect again to a
    device server that went away: QEMU 10 has only `reconnect-ms`, which libvirt says from version 11 on.
    """
    return libvirt >= RECONNECT_LIBVIRT or qemu < NO_RECONNECT_QEMU


def device_element(
    device: MachineDevice, *, target: str | None = None, reconnect: bool = True, managed: bool = True
) -> ET.Element:
    """<disk>, <interface> or <hostdev>.

    Args:
        device: what it is for.
        target: the name a disk is known by in its domain.
        reconnect: QEMU connects again to a server that went away, see `reconnects`.
        managed: libvirt takes a function of the host and gives it back; else somebody else does.

    Raises:
        IolaneError: libvirt has no element for it.
    """
    if isinstance(device, VfioPciDevice):
        return _hostdev(device, managed)
    if isinstance(device, VhostUserDevice) and device.kind is DeviceType.BLOCK:
        return _disk(device, target or "vda", reconnect)
    if isinstance(device, VhostUserDevice) and device.kind is DeviceType.NET:
        return _interface(device, reconnect)
    raise IolaneError(
        f"libvirt has no element for {device.id}",
        remedy="carry it by vfio-user: carrier=vfio-user",
    )


def _disk(device: VhostUserDevice, target: str, reconnect: bool) -> ET.Element:
    """A disk of type vhostuser (formatdomain, "Hard drives, floppy disks, CDROMs")."""
    disk = ET.Element("disk", type="vhostuser", device="disk")
    driver = ET.SubElement(disk, "driver", name="qemu", type="raw", queues=str(device.queues))
    if device.queue_size is not None:
        driver.set("queue_size", str(device.queue_size))
    source = ET.SubElement(disk, "source", type="unix", path=str(device.socket))
    if reconnect:
        ET.SubElement(source, "reconnect", enabled="yes", timeout="1")
    ET.SubElement(disk, "target", dev=target, bus="virtio")
    if device.bootindex is not None:
        ET.SubElement(disk, "boot", order=str(device.bootindex))
    ET.SubElement(disk, "alias", name=alias(device.id))
    return disk


def _interface(device: VhostUserDevice, reconnect: bool) -> ET.Element:
    """An interface of type vhostuser (formatdomain, "vhost-user interface")."""
    interface = ET.Element("interface", type="vhostuser")
    if device.mac is not None:
        ET.SubElement(interface, "mac", address=device.mac)
    source = ET.SubElement(interface, "source", type="unix", path=str(device.socket), mode="client")
    if reconnect:
        ET.SubElement(source, "reconnect", enabled="yes", timeout="1")
    ET.SubElement(interface, "model", type="virtio")
    if device.queues > 1:
        ET.SubElement(interface, "driver", queues=str(device.queues))
    ET.SubElement(interface, "alias", name=alias(device.id))
    return interface


def _hostdev(device: VfioPciDevice, managed: bool) -> ET.Element:
    """A function of the host (formatdomain, "Host device assignment")."""
    hostdev = ET.Element("hostdev", mode="subsystem", type="pci", managed="yes" if managed else "no")
    source = ET.SubElement(hostdev, "source")
    where = device.address
    ET.SubElement(
        source,
        "address",
        domain=f"0x{where.segment:04x}",
        bus=f"0x{where.bus:02x}",
        slot=f"0x{where.device:02x}",
        function=f"0x{where.function:x}",
    )
    if not device.rom:
        ET.SubElement(hostdev, "rom", bar="off")
    ET.SubElement(hostdev, "alias", name=alias(device.id))
    return hostdev


def port_of(identity: str) -> str:
    """The root port of a device that QEMU gets as arguments."""
    return f"iolane-{identity}"


def commandline_arguments(devices: Sequence[VfioUserDevice], taken: Sequence[int] = ()) -> list[str]:
    """QEMU's arguments for devices that libvirt has no element for, each behind a root port of its own.
    `taken` are slots of the root bus that others have.
    """
    free = [slot for slot in range(FIRST_SLOT, LAST_SLOT + 1) if slot not in taken]
    if len(devices) > len(free):
        raise IolaneError(
            f"{len(devices)} devices by vfio-user, but {len(free)} slots of the root bus are free"
        )
    arguments = []
    for device, slot in zip(devices, free, strict=False):
        port = {
            "driver": "pcie-root-port",
            "id": port_of(device.id),
            "bus": "pcie.0",
            "addr": f"0x{slot:x}",
            "chassis": FIRST_CHASSIS + slot,
        }
        arguments += ["-device", json.dumps(port, separators=(",", ":"))]
        arguments += device.arguments(port_of(device.id))
    return arguments


def commandline_element(arguments: Sequence[str]) -> ET.Element:
    """<qemu:commandline> (libvirt's drvqemu, "Pass-through of arbitrary qemu commands")."""
    element = ET.Element(f"{{{QEMU_NAMESPACE}}}commandline")
    for argument in arguments:
        ET.SubElement(element, f"{{{QEMU_NAMESPACE}}}arg", value=argument)
    return element


def text(element: ET.Element) -> str:
    """As XML, a line for each element."""
    ET.indent(element)
    return ET.tostring(element, encoding="unicode")
