"""What a domain must be for iolane's devices, read from its XML; what is missing is said with what to add."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree as ET

from iolane.errors import IolaneError

SHARED = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
ROOT_PORT = "<controller type='pci' model='pcie-root-port'/>"


def require_shared_memory(document: str, identity: str) -> None:
    """A device in another process reaches the guest's memory only where it is shared (vhost-user "Memory
    access").

    Raises:
        IolaneError: it is private to QEMU.
    """
    root = ET.fromstring(document)
    access = root.find("memoryBacking/access")
    cells = root.findall("cpu/numa/cell")
    shared = access is not None and access.get("mode") == "shared"
    if cells and all(cell.get("memAccess") == "shared" for cell in cells):
        shared = True
    if any(cell.get("memAccess", "shared") != "shared" for cell in cells):
        shared = False
    if not shared:
        raise IolaneError(
            f"{identity} can't reach the guest's memory: the domain {_name(root)} does not share it",
            remedy=f"shut it down and add {SHARED} (virsh edit {_name(root)})",
        )


def require_qemu(document: str) -> None:
    """Only domains of the QEMU driver can have iolane's devices. Raises IolaneError for others."""
    root = ET.fromstring(document)
    if root.get("type") not in ("qemu", "kvm"):
        raise IolaneError(f"the domain {_name(root)} is of type {root.get('type')}, not of QEMU's")


def free_ports(document: str) -> list[str]:
    """QEMU's ids of the root ports that no device of libvirt's is behind, the last first: libvirt itself
    takes the first, and does not know of what comes by the monitor.
    """
    root = ET.fromstring(document)
    taken = {int(address.get("bus", "0"), 0) for address in _pci_addresses(root, ports=False)}
    ports = [
        int(controller.get("index", "0"))
        for controller in root.findall("devices/controller[@type='pci']")
        if controller.get("model") == "pcie-root-port"
    ]
    return [f"pci.{index}" for index in sorted(ports, reverse=True) if index not in taken]


def taken_root_slots(document: str) -> list[int]:
    """Slots of the root bus that the domain's devices have."""
    root = ET.fromstring(document)
    every = [*_pci_addresses(root, ports=True), *_pci_addresses(root, ports=False)]
    return sorted({int(each.get("slot", "0"), 0) for each in every if int(each.get("bus", "0"), 0) == 0})


def free_disk_name(document: str) -> str:
    """A name for one more virtio disk."""
    root = ET.fromstring(document)
    taken = {target.get("dev") for target in root.findall("devices/disk/target")}
    names = (f"vd{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
    name = next((name for name in names if name not in taken), None)
    if name is None:
        raise IolaneError(f"the domain {_name(root)} has 26 virtio disks")
    return name


def has_alias(document: str, name: str) -> bool:
    """Whether a device of the domain has this alias."""
    root = ET.fromstring(document)
    return any(each.get("name") == name for each in root.findall("devices/*/alias"))


def _pci_addresses(root: ET.Element, *, ports: bool) -> Iterator[ET.Element]:
    for device in root.findall("devices/*"):
        is_port = device.tag == "controller" and device.get("type") == "pci"
        if is_port == ports:
            yield from device.findall("address[@type='pci']")


def _name(root: ET.Element) -> str:
    return root.findtext("name", "?")
