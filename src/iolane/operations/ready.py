"""How to use a served device: what to give to QEMU, to libvirt, to User Mode Linux."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec

from iolane.engines.qemu.vhost_user import FRONT_ENDS, VhostUserDevice
from iolane.operations.serving import Endpoint, VirtioKind
from iolane.uapi.virtio import DeviceType

MEMORY = ("-object", "memory-backend-memfd,id=ram,size=1G,share=on", "-machine", "q35,memory-backend=ram")
LIBVIRT_MEMORY = '  <memoryBacking><source type="memfd"/><access mode="shared"/></memoryBacking>'


class Ready(msgspec.Struct, frozen=True):
    """How to use a served device."""

    name: str
    type: str
    carrier: str
    socket: str
    pid: int
    qemu: list[str]
    """Arguments for QEMU >= 10.1; guest RAM must be shared memory for the device to reach it. Empty where
    QEMU has no front end for the device."""
    libvirt: str
    """Elements for a libvirt domain."""
    uml: str
    """The kernel parameter for User Mode Linux."""


def ready_lines(endpoint: Endpoint) -> Ready:
    """What to give to a virtual machine monitor."""
    assert endpoint.served is not None
    name, socket = endpoint.name, endpoint.socket.absolute()
    if endpoint.virtio is None:
        device = {"driver": "vfio-user-pci", "id": name, "socket": {"type": "unix", "path": str(socket)}}
        argument = json.dumps(device, separators=(",", ":"))
        carrier, qemu, libvirt, uml = "vfio-user", ["-device", argument], _vfio_user_domain(argument), ""
    else:
        carrier, kind = "vhost-user", endpoint.virtio
        qemu, libvirt = _vhost_user_arguments(name, socket, kind), _vhost_user_domain(socket, kind)
        uml = f"virtio_uml.device={socket}:{int(kind.type)}"
    return Ready(
        name=name,
        type=endpoint.served.type,
        carrier=carrier,
        socket=str(socket),
        pid=os.getpid(),
        qemu=[*MEMORY, *qemu] if qemu else [],
        libvirt=libvirt,
        uml=uml,
    )


def _vfio_user_domain(argument: str) -> str:
    return "\n".join(
        (
            '<domain type="kvm" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">',
            LIBVIRT_MEMORY,
            "  <qemu:commandline>",
            '    <qemu:arg value="-device"/>',
            f"    <qemu:arg value='{_attribute(argument)}'/>",
            "  </qemu:commandline>",
            "</domain>",
        )
    )


def _vhost_user_arguments(name: str, socket: Path, kind: VirtioKind) -> list[str]:
    if kind.type not in FRONT_ENDS:
        return []
    device = VhostUserDevice(
        name, socket, kind.type, kind.queues, kind.queue_size, mac=kind.mac, standby=kind.standby
    )
    return device.arguments(None)


def _vhost_user_domain(socket: Path, kind: VirtioKind) -> str:
    """<disk type='vhostuser'> and <interface type='vhostuser'> of libvirt's formatdomain."""
    again = '<reconnect enabled="yes" timeout="1"/>'
    path = _attribute(str(socket))
    element: tuple[str, ...]
    if kind.type is DeviceType.BLOCK:
        element = (
            '    <disk type="vhostuser" device="disk">',
            f'      <driver name="qemu" type="raw" queues="{kind.queues}"/>',
            f"      <source type=\"unix\" path='{path}'>{again}</source>",
            '      <target dev="vda" bus="virtio"/>',
            "    </disk>",
        )
    elif kind.type is DeviceType.NET:
        element = (
            '    <interface type="vhostuser">',
            *([f'      <mac address="{kind.mac}"/>'] if kind.mac else []),
            f'      <source type="unix" path=\'{path}\' mode="client">{again}</source>',
            '      <model type="virtio"/>',
            f'      <driver queues="{kind.queues}"/>',
            "    </interface>",
        )
    else:
        return ""
    return "\n".join(
        ('<domain type="kvm">', LIBVIRT_MEMORY, "  <devices>", *element, "  </devices>", "</domain>")
    )


def _attribute(text: str) -> str:
    """`text` inside an XML attribute in single quotes."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("'", "&apos;")
