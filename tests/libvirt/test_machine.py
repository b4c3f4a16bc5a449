"""A machine on the engine `libvirt`: its guest, its console, devices that come and go, on a real libvirtd."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.carriers.control.machine_messages import EventKind, MachineEvent
from iolane.engines.libvirt.machine import LibvirtMachine
from iolane.engines.machine import EngineMachine
from iolane.engines.outcome import UnplugOutcome
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.command_line import MachineDevice
from iolane.engines.qemu.config import MachineConfig
from iolane.engines.qemu.initramfs import InitramfsContent
from iolane.engines.qemu.provision import obtain_qemu
from iolane.errors import IolaneError
from iolane.operations.machine.devices import machine_device
from iolane.operations.serving import DeviceServers
from tests.libvirt.host import LibvirtHost

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.timeout(900)]

MODULES = ("virtio_pci", "virtio_blk", "nvme")


class Told:
    """The machine's events, in order."""

    def __init__(self) -> None:
        self.events: list[MachineEvent] = []
        self._changed = threading.Condition()

    def __call__(self, event: MachineEvent) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait(self, kind: EventKind) -> None:
        """Until it has come."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(e.kind is kind for e in self.events), 30), self.events


@pytest.fixture(scope="module")
def image(folder: Path) -> Path:
    path = folder / "disk.raw"
    path.write_bytes(b"IOLANE!\n" * (1 << 17))
    return path


@pytest.fixture(scope="module")
def servers(folder: Path, image: Path) -> Iterator[DeviceServers]:
    other = folder / "nvme.raw"
    other.write_bytes(b"NVME-OK\n" * (1 << 17))
    devices = [
        f"block,image={image},id=disk0",
        f"nvme,image={other},id=nvme0,presentation=msi",
        "edu,id=edu0",
        "examples/adder.py:Adder,id=adder0",
    ]
    with DeviceServers(devices) as servers:
        yield servers


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def machine(host: LibvirtHost, servers: DeviceServers, told: Told) -> Iterator[LibvirtMachine]:
    """It begins with an emulated device, which QEMU gets by its command line."""
    config = MachineConfig(
        name="engine",
        memory_mib=256,
        ports=4,
        devices=[machine_device(each) for each in servers.endpoints if each.name == "edu0"],
        content=InitramfsContent(modules=list(MODULES)),
        shell=True,
        qemu=obtain_qemu(Cache()),
    )
    machine = LibvirtMachine(config, uri=host.uri)
    machine.on_event = told
    with machine:
        yield machine


def device(servers: DeviceServers, name: str) -> MachineDevice:
    return machine_device(next(each for each in servers.endpoints if each.name == name))


def test_runs_commands(machine: LibvirtMachine, host: LibvirtHost) -> None:
    engine: EngineMachine = machine
    assert engine.running
    assert "console=ttyS0" in machine.check("cat /proc/cmdline")
    assert "engine" in host.check("virsh list --name")
    assert "0x11e8" in machine.check("cat /sys/bus/pci/devices/*/device")


def test_has_a_console(machine: LibvirtMachine) -> None:
    machine.console.write(b"echo $((6 * 7))-is-the-answer\n")
    machine.console.wait_for("^42-is-the-answer", 60)


def test_a_disk_by_libvirts_own_element_comes_and_goes(
    machine: LibvirtMachine, servers: DeviceServers, image: Path, host: LibvirtHost
) -> None:
    machine.plug(device(servers, "disk0"))
    assert "type='vhostuser'" in host.check("virsh dumpxml engine")
    wait = "for i in $(seq 100); do [ -b /dev/vda ] && break; sleep .1; done"
    assert machine.check(f"{wait}; head -c 8 /dev/vda") == "IOLANE!\n"
    machine.check("echo -n GUESTWAS | dd of=/dev/vda bs=8 seek=1 conv=fsync,notrunc")
    assert image.read_bytes()[8:16] == b"GUESTWAS"
    assert machine.unplug("disk0") is UnplugOutcome.AGREED
    assert machine.check("ls /dev/vd* 2>/dev/null || echo none").strip() == "none"


def test_an_emulated_disk_by_the_monitor_comes_and_goes(
    machine: LibvirtMachine, servers: DeviceServers, host: LibvirtHost
) -> None:
    machine.plug(device(servers, "nvme0"))
    assert "nvme0" not in host.check("virsh dumpxml engine")  # libvirt does not know
    wait = "for i in $(seq 200); do [ -b /dev/nvme0n1 ] && break; sleep .1; done"
    assert machine.check(f"{wait}; head -c 8 /dev/nvme0n1") == "NVME-OK\n"
    assert machine.unplug("nvme0") is UnplugOutcome.AGREED
    assert machine.check("ls /dev/nvme* 2>/dev/null || echo none").strip() == "none"


def test_one_with_msix_stays(machine: LibvirtMachine, servers: DeviceServers) -> None:
    """QEMU 11 would abort (facts: defect 1)."""
    machine.plug(device(servers, "adder0"))
    with pytest.raises(IolaneError, match="MSI-X"):
        machine.unplug("adder0")
    assert machine.running


def test_there_is_no_such_device(machine: LibvirtMachine) -> None:
    with pytest.raises(IolaneError, match="has no device nobody"):
        machine.unplug("nobody")


def test_is_held_and_let_go(machine: LibvirtMachine, told: Told) -> None:
    machine.pause()
    told.wait(EventKind.PAUSED)
    assert machine.paused
    machine.resume()
    told.wait(EventKind.RESUMED)
    assert not machine.paused
    machine.check("true")


def test_powers_off(machine: LibvirtMachine, told: Told, host: LibvirtHost) -> None:
    machine.powerdown()
    told.wait(EventKind.ENDED)
    assert not machine.running
    assert "engine" not in host.check("virsh list --all --name")
