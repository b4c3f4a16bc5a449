"""What sysfs says of functions and groups, and what not (Documentation/ABI/testing/sysfs-bus-pci)."""

from __future__ import annotations

import errno
import os

import pytest

from iolane.errors import IolaneError
from iolane.host.config_space import ConfigSpace
from iolane.host.function import HostBar, HostFunction, Resource
from iolane.host.inventory import find_function, functions
from iolane.host.iommu_group import ReservedRegion, groups, read_group
from iolane.host.sysfs import Host, HostError
from iolane.model.pci.pcie_id import PcieId
from tests.unit.host.machine import ROOT_PORT, Machine, config_space


def only(machine: Machine) -> HostFunction:
    [function] = functions(machine.host)
    return function


def test_a_function_is_read_whole(machine: Machine) -> None:
    machine.function("0000:00:1c.0", config=config_space(header_type=1, express=ROOT_PORT), driver="pcieport")
    machine.function(
        "0000:01:00.0",
        under="0000:00:1c.0/",
        driver="igb",
        group=7,
        config=config_space(msix=10, msi=4),
        bars=((0xFE00_0000, 0xFE01_FFFF, 0x40200), (0, 0, 0), (0xC000, 0xC01F, 0x40101)),
        numa_node="1",
        sriov_totalvfs="8",
        sriov_numvfs="0",
        sriov_drivers_autoprobe="1",
        power__wakeup="enabled",
    )
    port, nic = functions(machine.host)
    assert (port.is_bridge, port.config.express_type, nic.is_bridge) == (True, ROOT_PORT, False)
    assert (nic.address, nic.driver, nic.iommu_group, nic.numa_node) == (PcieId(0, 1, 0, 0), "igb", 7, 1)
    assert (nic.vendor, nic.device, nic.class_code, nic.base_class) == (0x8086, 0x10C9, 0x020000, 2)
    assert (nic.msix_vectors, nic.msi_vectors) == (10, 4)
    assert nic.reset_methods == ("flr", "bus")
    assert nic.bars == (
        HostBar(0, 0xFE00_0000, 0x20000, Resource.MEM),
        HostBar(2, 0xC000, 0x20, Resource.IO),
    )
    assert [bar.kind for bar in nic.bars] == ["mem32", "io"]
    assert nic.sriov is not None
    assert (nic.sriov.total, nic.sriov.enabled, nic.sriov.autoprobe) == (8, 0, True)
    assert nic.upstream == (port.address,)
    assert nic.wakeup


def test_virtual_functions_know_whose_they_are(machine: Machine) -> None:
    """More than ten of them: virtfn10 comes after virtfn9."""
    parent = machine.function("0000:01:00.0", sriov_totalvfs="16", sriov_numvfs="11")
    for number in range(11):
        folder = machine.function(f"0000:01:{0x10 + number // 8:02x}.{number % 8}")
        machine.link(f"{folder}/physfn", parent)
        machine.link(f"{parent}/virtfn{number}", folder)
    physical, *virtual = functions(machine.host)
    assert physical.sriov is not None
    assert physical.sriov.virtual_functions == tuple(function.address for function in virtual)
    assert {function.physical_function for function in virtual} == {physical.address}


def test_without_root_only_the_header_is_known(machine: Machine) -> None:
    """sysfs gives the first 64 bytes of config space to everybody, the rest to CAP_SYS_ADMIN."""
    machine.function("0000:01:00.0", config=config_space(msix=10)[:64])
    assert only(machine).msix_vectors is None
    assert not only(machine).is_bridge


def test_a_list_of_capabilities_that_is_a_ring_ends() -> None:
    data = bytearray(config_space(msix=10))
    data[0x91] = 0x60  # the last points to the first
    assert ConfigSpace(bytes(data)).msix_vectors == 10
    data[0x100:0x104] = (0x100 << 20 | 0x10001).to_bytes(4, "little")
    assert ConfigSpace(bytes(data)).extended_capabilities() == {1: 0x100}


@pytest.mark.parametrize("data", [b"", b"\xff" * 4096, bytes(range(256)) * 16, b"\xff" * 64])
def test_any_config_space_can_be_read(data: bytes) -> None:
    config = ConfigSpace(data)
    config.capabilities()
    config.extended_capabilities()
    assert config.answers == (data[:1] != b"\xff")


def test_kernels_before_5_15_do_not_name_reset_methods(machine: Machine) -> None:
    machine.function("0000:01:00.0", reset=None)
    assert only(machine).reset_methods == ()
    machine.file("sys/bus/pci/devices/0000:01:00.0/reset", "")
    assert only(machine).reset_methods == ("unnamed",)


def test_nonsense_in_sysfs_is_not_taken_for_facts(machine: Machine) -> None:
    machine.function("0000:01:00.0", numa_node="many", resource="x y z\n0x1 0x0 0x200", driver_override="\n")
    machine.file("sys/bus/pci/devices/readme", "not a function")
    found = only(machine)
    assert (found.numa_node, found.bars, found.driver_override) == (None, (), None)


def test_a_function_that_is_not_there_names_its_neighbours(machine: Machine) -> None:
    machine.function("0000:01:00.1")
    with pytest.raises(IolaneError, match=r"no PCI function 0000:01:00.0 \(in that slot: 0000:01:00.1\)"):
        find_function(machine.host, PcieId(0, 1, 0, 0))


def test_groups_with_members_and_regions(machine: Machine) -> None:
    machine.group(
        3, type="identity", regions="0x7d000000 0x7d7fffff direct\n0xfee00000 0xfeefffff msi\nbroken\n"
    )
    machine.function("0000:00:1f.3", group=3)
    machine.function("0000:00:1f.0", group=3)
    (machine.root / "sys/kernel/iommu_groups/3/devices/INT33A1:00").mkdir()
    [group] = groups(machine.host)
    assert group.members == (PcieId(0, 0, 0x1F, 0), PcieId(0, 0, 0x1F, 3))
    assert (group.number, group.type, group.others) == (3, "identity", ("INT33A1:00",))
    assert group.reserved_regions == (
        ReservedRegion(0x7D00_0000, 0x7D7F_FFFF, "direct"),
        ReservedRegion(0xFEE0_0000, 0xFEEF_FFFF, "msi"),
    )
    assert read_group(machine.host, 4) is None


def test_a_link_does_not_lead_out_of_a_recorded_host(machine: Machine) -> None:
    (machine.root / "sys/outside").symlink_to("/etc")
    assert machine.host.real("/sys/outside") is None


def test_a_refused_write_says_what_and_why(machine: Machine) -> None:
    with pytest.raises(HostError, match="writing 'vfio-pci' was refused: no such file") as caught:
        machine.host.write("/sys/nothing", "vfio-pci\n")
    assert caught.value.number == errno.ENOENT


def test_a_write_that_does_not_end_is_given_up(machine: Machine) -> None:
    """Opening a FIFO that nobody reads blocks, as unbinding from a driver that waits for its device does."""
    fifo = machine.root / "sys/unbind"
    os.mkfifo(fifo)
    with pytest.raises(HostError, match=r"has not finished writing '0000:01:00.0' after 0.05 s"):
        machine.host.write("/sys/unbind", "0000:01:00.0", deadline=0.05)
    assert fifo.open("rb").read() == b"0000:01:00.0"  # and the thread ends with the write


def test_waiting_is_bounded() -> None:
    answers = iter([False, False, True])
    Host("/nowhere").wait(lambda: next(answers), what="the link is there")
    with pytest.raises(HostError, match=r"the link is there: not so after 0.02 s"):
        Host("/nowhere").wait(lambda: False, what="the link is there", deadline=0.02)
