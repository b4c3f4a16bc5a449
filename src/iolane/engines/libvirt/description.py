"""A domain's XML, from nothing: a pure function of what the machine is to be (libvirt's formatdomain)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from iolane.engines.libvirt.elements import (
    commandline_arguments,
    commandline_element,
    device_element,
    is_known_to_libvirt,
    text,
)
from iolane.engines.libvirt.metadata import Attached, attached_element
from iolane.engines.qemu.command_line import QUICK_BOOT, Accelerator, MachineDevice, VfioUserDevice

DOMAIN_TYPES = {Accelerator.KVM: "kvm", Accelerator.TCG: "qemu"}
CPU_MODES = {Accelerator.KVM: "host-passthrough", Accelerator.TCG: "maximum"}


@dataclass(frozen=True)
class DomainDescription:
    """Everything that the XML says."""

    name: str
    accelerator: Accelerator
    emulator: Path | None = None
    """By default libvirt's own choice."""
    memory_mib: int = 512
    cpus: int = 1
    ports: int = 8
    """Root ports, for devices that come later."""
    devices: Sequence[MachineDevice] = ()
    """Functions of the host among them are held already."""
    attached: Sequence[Attached] = ()
    """What iolane has to know of the devices to serve them."""
    kernel: Path | None = None
    initrd: Path | None = None
    append: Sequence[str] = ()
    agent_socket: Path | None = None
    """Where the second serial port is, for the guest's agent."""
    reboot_stops: bool = True
    reconnect: bool = True
    """Whether QEMU connects again to vhost-user servers, see `elements.reconnects`."""


def domain_xml(domain: DomainDescription) -> str:
    """The whole document."""
    root = ET.Element("domain", type=DOMAIN_TYPES[domain.accelerator])
    ET.SubElement(root, "name").text = domain.name
    if domain.attached:
        ET.SubElement(root, "metadata").append(attached_element(domain.attached))
    ET.SubElement(root, "memory", unit="MiB").text = str(domain.memory_mib)
    ET.SubElement(root, "vcpu").text = str(domain.cpus)
    backing = ET.SubElement(root, "memoryBacking")
    ET.SubElement(backing, "source", type="memfd")
    ET.SubElement(backing, "access", mode="shared")
    root.append(_os(domain))
    ET.SubElement(ET.SubElement(root, "features"), "acpi")
    ET.SubElement(root, "cpu", mode=CPU_MODES[domain.accelerator])
    ET.SubElement(root, "on_poweroff").text = "destroy"
    ET.SubElement(root, "on_reboot").text = "destroy" if domain.reboot_stops else "restart"
    ET.SubElement(root, "on_crash").text = "destroy"
    root.append(_devices(domain))
    others = [each for each in domain.devices if isinstance(each, VfioUserDevice)]
    if others:
        root.append(commandline_element(commandline_arguments(others)))
    return text(root)


def _os(domain: DomainDescription) -> ET.Element:
    element = ET.Element("os")
    ET.SubElement(element, "type", arch="x86_64", machine="q35").text = "hvm"
    if domain.kernel is not None:
        ET.SubElement(element, "kernel").text = str(domain.kernel)
        if domain.initrd is not None:
            ET.SubElement(element, "initrd").text = str(domain.initrd)
        ET.SubElement(element, "cmdline").text = " ".join(
            ["console=ttyS0,115200", *QUICK_BOOT, *domain.append]
        )
    return element


def _devices(domain: DomainDescription) -> ET.Element:
    devices = ET.Element("devices")
    if domain.emulator is not None:
        ET.SubElement(devices, "emulator").text = str(domain.emulator)
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "controller", type="pci", index="0", model="pcie-root")
    for index in range(1, domain.ports + 1):
        ET.SubElement(devices, "controller", type="pci", index=str(index), model="pcie-root-port")
    console = ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(console, "target", type="isa-serial", port="0")
    if domain.agent_socket is not None:
        agent = ET.SubElement(devices, "serial", type="unix")
        ET.SubElement(agent, "source", mode="bind", path=str(domain.agent_socket))
        ET.SubElement(agent, "target", type="isa-serial", port="1")
    ET.SubElement(devices, "memballoon", model="none")
    disks = iter(f"vd{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
    for device in domain.devices:
        if is_known_to_libvirt(device):
            element = device_element(device, reconnect=domain.reconnect, managed=False)
            if (target := element.find("target")) is not None:
                target.set("dev", next(disks))
            devices.append(element)
    return devices
