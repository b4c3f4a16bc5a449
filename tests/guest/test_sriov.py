"""SR-IOV in a stock Debian guest on a stock QEMU: one boot, then every check against it.

Linux's own code enables the VFs, finds them, resets them and takes them away; `pci-pf-stub` is the kernel's
driver for a PF that needs none, and the VFs run under the driver of the adder. What QEMU can't do is to map a
VF where the PF's VF BARs say, so the guest says it to each VF as well (`docs/sriov.md`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from iolane.carriers.vfio_user import VfioUserServer
from iolane.devices.sriov import TOTAL_VFS, SharedAdder, VirtualAdder
from iolane.engines.qemu.command_line import VfioUserDevice
from iolane.engines.qemu.initramfs import InitramfsContent, Program
from iolane.engines.qemu.kernel import Flavour, build_module, debian_kernel
from iolane.engines.qemu.machine import MachineConfig, QemuMachine
from iolane.errors import IolaneError
from iolane.model.interrupts import InterruptMode

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).parents[2] / "examples"
PF = "/sys/bus/pci/devices/0000:01:00.0"
DRIVERS = "/sys/bus/pci/drivers"


def vf(number: int) -> str:
    """The address of a VF in the guest."""
    return f"0000:01:00.{number + 1}"


@dataclass
class Guest:
    """The machine and the device, both in this process's hands."""

    machine: QemuMachine
    device: SharedAdder

    def enable(self, count: int) -> None:
        """VFs by Linux, then their BARs for QEMU, then their drivers."""
        self.machine.check(f"echo 0 > {PF}/sriov_drivers_autoprobe; echo {count} > {PF}/sriov_numvfs")
        for number in range(count):
            self.machine.check(f"sh /place-vf {vf(number)}")
        self.machine.check(f"echo 1 > {PF}/sriov_drivers_autoprobe")

    def bind(self, number: int) -> None:
        """Bind a VF to the adder's driver."""
        self.machine.check(f"echo {vf(number)} > {DRIVERS}/adder/bind")

    def add(self, number: int, a: int, b: int) -> str:
        """The sum by a VF."""
        folder = f"{DRIVERS}/adder/{vf(number)}"
        return self.machine.check(f"cd {folder} && echo {a} {b} > sum && cat sum").strip()


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    folder = tmp_path_factory.mktemp("sockets")
    kernel = debian_kernel(Flavour.CLOUD)
    with contextlib.ExitStack() as stack:
        device = SharedAdder()
        stack.callback(device.close)
        servers = [
            stack.enter_context(VfioUserServer(each, folder / f"{each.name}.sock"))
            for each in (device, *device.sriov.all)
        ]
        shared = VfioUserDevice("shared", servers[0].path, virtual=[each.path for each in servers[1:]])
        machine = QemuMachine(
            MachineConfig(
                name="sriov",
                kernel=kernel,
                devices=[shared],
                content=InitramfsContent(
                    modules=["pci-pf-stub"],
                    extra_modules=[build_module(kernel, EXAMPLES / "adder_driver")],
                    programs=[Program("pciutils", "lspci")],
                    files={"/place-vf": EXAMPLES / "place-vf"},
                ),
            )
        )
        stack.enter_context(machine)
        yield Guest(machine, device)


def test_a_stock_kernel_finds_the_capability_and_no_vf(guest: Guest) -> None:
    machine = guest.machine
    names = "sriov_totalvfs sriov_numvfs sriov_offset sriov_stride sriov_vf_device ari_enabled"
    assert machine.check(f"cd {PF} && cat {names}").split() == ["4", "0", "1", "1", "11af", "1"]
    assert "0000:01:00.1" not in machine.check("ls /sys/bus/pci/devices")
    assert machine.check("dmesg").count("for 4 VFs") == 2  # BAR 0, and that of MSI-X


def test_lspci_names_it(guest: Guest) -> None:
    text = guest.machine.check("lspci -vvv -n -s 01:00.0")
    assert "Single Root I/O Virtualization (SR-IOV)" in text
    assert "Alternative Routing-ID Interpretation (ARI)" in text
    assert re.search(r"Initial VFs: 4, Total VFs: 4, Number of VFs: 0", text)
    assert re.search(r"VF offset: 1, stride: 1, Device ID: 11af", text)


def test_vfs_come_add_interrupt_and_go(guest: Guest) -> None:
    machine, device = guest.machine, guest.device
    machine.check(f"echo 1234 11ae > {DRIVERS}/pci-pf-stub/new_id; test -e {PF}/driver")
    guest.enable(2)
    assert machine.check(f"cat {PF}/sriov_numvfs; ls -d {PF}/virtfn* | wc -l").split() == ["2", "2"]
    assert len(device.sriov.present) == 2
    identity = machine.check(f"cd {PF}/virtfn1 && cat vendor device && readlink physfn && cat reset_method")
    assert identity.split() == ["0x1234", "0x11af", "../0000:01:00.0", "flr"]
    machine.check(f"echo 1234 11af > {DRIVERS}/adder/new_id")
    assert (guest.add(0, 40, 2), guest.add(1, 4294967290, 7)) == ("42", "1")
    for virtual in device.sriov.present:
        assert virtual.interrupts.mode is InterruptMode.MSIX
        assert (virtual.interrupts.delivered_count, virtual.work, virtual.error_count) == (1, 1, 0)
    folder = f"{DRIVERS}/adder/{vf(1)}"
    assert machine.check(f"cat {folder}/interrupts").strip() == "1"


def test_the_guest_sees_the_vfs_where_the_model_has_them(guest: Guest) -> None:
    for number, virtual in enumerate(guest.device.sriov.present):
        lines = guest.machine.check(f"cat /sys/bus/pci/devices/{vf(number)}/resource").splitlines()
        for bar in (0, 4):
            assert int(lines[bar].split()[0], 16) == guest.device.sriov.address_of(virtual.number, bar)


def test_flr_of_a_vf_by_linux(guest: Guest) -> None:
    virtual, other = guest.device.sriov.all[:2]
    guest.machine.check(f"echo {vf(0)} > {DRIVERS}/adder/unbind; echo 1 > /sys/bus/pci/devices/{vf(0)}/reset")
    assert isinstance(virtual, VirtualAdder)
    assert (virtual.work, virtual.present, virtual.memory_enabled) == (0, True, True)
    assert other.work == 1
    guest.bind(0)
    assert guest.add(0, 3, 4) == "7"


def test_vfs_go_and_come_again(guest: Guest) -> None:
    machine, device = guest.machine, guest.device
    machine.check(f"echo 0 > {PF}/sriov_numvfs")
    assert device.describe()["vfs_enabled"] == 0
    assert "0000:01:00.1" not in machine.check("ls /sys/bus/pci/devices")
    refused = machine.run(f"echo 5 > {PF}/sriov_numvfs")
    assert refused.exit_code != 0 or machine.check(f"cat {PF}/sriov_numvfs").strip() == "0"
    guest.enable(TOTAL_VFS)
    for number in range(TOTAL_VFS):
        guest.bind(number)
        assert guest.add(number, number, 100) == str(100 + number)
    assert [virtual.work for virtual in device.sriov.present] == [1] * TOTAL_VFS
    assert [virtual.dma.fault_count for virtual in device.sriov.present] == [0] * TOTAL_VFS


def test_unplugging_and_plugging_are_refused(guest: Guest, tmp_path: Path) -> None:
    with pytest.raises(IolaneError, match="virtual functions"):
        guest.machine.unplug("shared")
    with another_one(tmp_path) as device, pytest.raises(IolaneError, match="made with the machine"):
        guest.machine.plug(device)


def test_flr_of_the_pf_ends_the_vfs(guest: Guest) -> None:
    """Linux saves and restores: it enables them again, new."""
    machine, device = guest.machine, guest.device
    before = [virtual.work for virtual in device.sriov.all]
    assert before == [1] * TOTAL_VFS
    machine.check(f"echo 1 > {PF}/reset")
    assert len(device.sriov.present) == TOTAL_VFS
    assert [virtual.work for virtual in device.sriov.all] == [0] * TOTAL_VFS
    assert device.error_count == 0


@contextlib.contextmanager
def another_one(folder: Path) -> Iterator[VfioUserDevice]:
    """Another one, served."""
    with contextlib.ExitStack() as stack:
        device = SharedAdder()
        stack.callback(device.close)
        paths = [
            stack.enter_context(VfioUserServer(each, folder / f"{number}.sock")).path
            for number, each in enumerate((device, *device.sriov.all))
        ]
        yield VfioUserDevice("another", paths[0], virtual=paths[1:])
