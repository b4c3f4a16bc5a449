"""Devices that QEMU's vhost-user front ends connect to: arguments for them, and plugging them at run time.

QEMU keeps the PCI function, its configuration and its interrupts; the rings are served at the other end. Its
front ends of disks and network devices connect again when a server comes back, and their devices migrate.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iolane.engines.qemu.qmp import Qmp, QmpError
from iolane.errors import IolaneError
from iolane.uapi.virtio import DeviceType

RECONNECT_MS = 500
"""How often QEMU tries to reach a server that has gone."""

FRONT_ENDS = {
    DeviceType.BLOCK: "vhost-user-blk-pci",
    DeviceType.NET: "virtio-net-pci",
    DeviceType.RNG: "vhost-user-rng-pci",
}
"""The devices of QEMU 11 that know a kind of device."""

FRAIL = frozenset({DeviceType.RNG})
"""Their front end stands on QEMU's hw/virtio/vhost-user-base.c. It must be connected when it is made, which a
chardev that connects again is not yet; what a lost connection took from it, it never makes anew; its devices
do not migrate."""

RNG_VECTORS = 2
"""QEMU's own choice, 1, has no room for the queue's: Linux then shares an INTx line."""

VECTORS_BESIDE_QUEUES = 2
"""Of a network device: configuration and control queue."""


@dataclass(frozen=True)
class VhostUserDevice:
    """A virtio device server that QEMU connects to, at `socket`."""

    id: str
    socket: Path
    kind: DeviceType
    queues: int = 1
    """Request queues of a disk, pairs of queues of a network device."""
    queue_size: int | None = None
    """Of a disk; by default QEMU's own."""
    bootindex: int | None = None
    port: str | None = None
    """The root port it sits behind; by default the first free one."""
    mac: str | None = None
    """Of a network device."""
    standby: bool = False
    """Of a network device: the stand-in of another with the same address, which goes when the machine moves
    (VIRTIO_NET_F_STANDBY). QEMU offers the feature itself and keeps it from the server, whom it does not
    concern."""

    def __post_init__(self) -> None:
        if self.kind not in FRONT_ENDS:
            raise IolaneError(
                f"no vhost-user front end of QEMU is used for the {self.kind.name.lower()} device {self.id}",
                remedy="carry it by vfio-user: carrier=vfio-user",
            )

    def properties(self, port: str | None) -> dict[str, object]:
        """The properties of QEMU's device; without a port the caller's machine chooses."""
        properties: dict[str, object] = {"driver": FRONT_ENDS[self.kind], "id": self.id}
        if port is not None:
            properties["bus"] = port
        if self.kind is DeviceType.NET:
            properties["netdev"] = self._netdev
            if self.queues > 1:
                properties |= {"mq": True, "vectors": 2 * self.queues + VECTORS_BESIDE_QUEUES}
            if self.mac is not None:
                properties["mac"] = self.mac
            if self.standby:
                properties["failover"] = True
        else:
            properties["chardev"] = self._chardev
        if self.kind is DeviceType.BLOCK:
            properties["num-queues"] = self.queues
            if self.queue_size is not None:
                properties["queue-size"] = self.queue_size
        if self.kind is DeviceType.RNG:
            properties["vectors"] = RNG_VECTORS
        if self.bootindex is not None:
            properties["bootindex"] = self.bootindex
        return properties

    def arguments(self, port: str | None) -> list[str]:
        """Of the command line."""
        path = str(self.socket.absolute()).replace(",", ",,")
        again = "" if self.frail else f",reconnect-ms={RECONNECT_MS}"
        arguments = ["-chardev", f"socket,id={self._chardev},path={path}{again}"]
        if self.kind is DeviceType.NET:
            netdev = f"vhost-user,id={self._netdev},chardev={self._chardev},queues={self.queues}"
            arguments += ["-netdev", netdev]
        return [*arguments, "-device", json.dumps(self.properties(port), separators=(",", ":"))]

    def plug(self, qmp: Qmp, port: str) -> None:
        """Make it in a machine that runs; what was made on the way is taken back when it fails."""
        address = {"type": "unix", "data": {"path": str(self.socket.absolute())}}
        backend = {"addr": address, "server": False}
        if not self.frail:
            backend["reconnect-ms"] = RECONNECT_MS
        qmp.execute("chardev-add", id=self._chardev, backend={"type": "socket", "data": backend})
        try:
            if self.kind is DeviceType.NET:
                netdev = {"type": "vhost-user", "id": self._netdev, "chardev": self._chardev}
                qmp.execute("netdev_add", **netdev, queues=self.queues)
            qmp.execute("device_add", **self.properties(port))
        except IolaneError:
            self.forget(qmp)
            raise

    def forget(self, qmp: Qmp) -> None:
        """The device is gone: take away what it stood on."""
        if self.kind is DeviceType.NET:
            _remove(qmp, "netdev_del", self._netdev)
        _remove(qmp, "chardev-remove", self._chardev)

    def check(self) -> None:
        """Refuse a device whose server is not there. Raises IolaneError."""
        check_listening(self.id, self.socket)

    @property
    def remedy(self) -> str:
        """What to look at when QEMU refuses it."""
        return f"is its server listening at {self.socket}?"

    @property
    def frail(self) -> bool:
        """Whether the device is dead once its server has gone, and can't migrate."""
        return self.kind in FRAIL

    @property
    def _chardev(self) -> str:
        return f"{self.id}.socket"

    @property
    def _netdev(self) -> str:
        return f"{self.id}.net"


def unreachable(qmp: Qmp, devices: Sequence[object]) -> list[str]:
    """Ids of devices whose server QEMU has no connection to now."""
    ours = {device._chardev: device.id for device in devices if isinstance(device, VhostUserDevice)}
    return [
        ours[each["label"]]
        for each in qmp.execute("query-chardev")
        if each["label"] in ours and each["filename"].startswith("disconnected:")
    ]


def _remove(qmp: Qmp, command: str, identity: str) -> None:
    with contextlib.suppress(QmpError):
        qmp.execute(command, id=identity)


def check_listening(identity: str, path: Path) -> None:
    """Refuse a device whose server is not there: QEMU connects at once. Raises IolaneError."""
    if not path.is_socket():
        raise IolaneError(f"nobody listens at {path} for device {identity}", remedy="start its server first")
