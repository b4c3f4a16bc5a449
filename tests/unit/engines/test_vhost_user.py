"""What QEMU is told of devices that vhost-user carries, at start and while it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from iolane.engines.qemu.command_line import (
    Accelerator,
    Hardware,
    MachineDevice,
    VfioUserDevice,
    command_line,
)
from iolane.engines.qemu.qmp import Qmp, QmpError
from iolane.engines.qemu.vhost_user import VhostUserDevice
from iolane.errors import IolaneError
from iolane.uapi.virtio import DeviceType

SOCKET = Path("/run/a,b.sock")


def device(kind: DeviceType = DeviceType.BLOCK, **more: Any) -> VhostUserDevice:
    return VhostUserDevice("x", SOCKET, kind, **more)


class Recorder:
    """Stands in for QMP: takes commands, refuses those of a name."""

    def __init__(self, refused: str = "") -> None:
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self._refused = refused

    def execute(self, command: str, **arguments: Any) -> None:
        self.commands.append((command, arguments))
        if command == self._refused:
            raise QmpError(f"QEMU refuses {command}")

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.commands]


def test_a_disk() -> None:
    arguments = device(queues=2, queue_size=64, bootindex=1).arguments("port3")
    assert arguments[:2] == ["-chardev", "socket,id=x.socket,path=/run/a,,b.sock,reconnect-ms=500"]
    assert json.loads(arguments[3]) == {
        "driver": "vhost-user-blk-pci",
        "id": "x",
        "bus": "port3",
        "chardev": "x.socket",
        "num-queues": 2,
        "queue-size": 64,
        "bootindex": 1,
    }


@pytest.mark.parametrize("queues", [1, 4])
def test_a_network_device(queues: int) -> None:
    arguments = device(DeviceType.NET, queues=queues, mac="02:00:00:00:00:01").arguments(None)
    assert arguments[2:4] == ["-netdev", f"vhost-user,id=x.net,chardev=x.socket,queues={queues}"]
    properties = json.loads(arguments[5])
    assert (properties["netdev"], properties["mac"]) == ("x.net", "02:00:00:00:00:01")
    assert "bus" not in properties
    several = {key: properties[key] for key in ("mq", "vectors") if key in properties}
    assert several == ({"mq": True, "vectors": 10} if queues == 4 else {})


def test_an_entropy_device_is_connected_once() -> None:
    """A chardev that connects again is not connected yet when the device is made, and that fails."""
    arguments = device(DeviceType.RNG).arguments("port1")
    assert arguments[:2] == ["-chardev", "socket,id=x.socket,path=/run/a,,b.sock"]
    assert json.loads(arguments[3]) == {
        "driver": "vhost-user-rng-pci",
        "id": "x",
        "bus": "port1",
        "chardev": "x.socket",
        "vectors": 2,
    }
    qmp = Recorder()
    device(DeviceType.RNG).plug(cast(Qmp, qmp), "port1")
    assert "reconnect-ms" not in qmp.commands[0][1]["backend"]["data"]


def test_others_have_no_front_end() -> None:
    with pytest.raises(IolaneError, match=r"no vhost-user front end .*carrier=vfio-user"):
        device(DeviceType.CONSOLE)


def test_both_carriers_on_one_command_line() -> None:
    devices: list[MachineDevice] = [VfioUserDevice("a", Path("/s")), device()]
    hardware = Hardware("m", Accelerator.TCG, devices=devices, incoming=True)
    words = command_line(hardware)
    assert words[words.index("-incoming") + 1] == "defer"
    assert "-S" in words, "it does not go on by itself"
    made = [json.loads(word) for word in words if word.startswith("{")]
    assert [(each["driver"], each["bus"]) for each in made] == [
        ("vfio-user-pci", "port1"),
        ("vhost-user-blk-pci", "port2"),
    ]


def test_plugging_makes_what_it_stands_on_first() -> None:
    qmp = Recorder()
    device(DeviceType.NET).plug(cast(Qmp, qmp), "port1")
    assert qmp.names == ["chardev-add", "netdev_add", "device_add"]
    assert qmp.commands[0][1]["backend"]["data"]["addr"]["data"] == {"path": str(SOCKET)}
    device(DeviceType.NET).forget(cast(Qmp, qmp))
    assert qmp.names[3:] == ["netdev_del", "chardev-remove"]


@pytest.mark.parametrize("refused", ["netdev_add", "device_add"])
def test_plugging_that_fails_leaves_nothing(refused: str) -> None:
    qmp = Recorder(refused)
    with pytest.raises(QmpError):
        device(DeviceType.NET).plug(cast(Qmp, qmp), "port1")
    assert qmp.names[-2:] == ["netdev_del", "chardev-remove"]


def test_a_stand_in() -> None:
    """QEMU's name for VIRTIO_NET_F_STANDBY; without `failover_pair_id` it leaves plugging to us."""
    assert (
        device(DeviceType.NET, mac="02:00:00:00:00:01", standby=True).properties("port1")["failover"] is True
    )
    assert "failover" not in device(DeviceType.NET).properties("port1")
