"""Which function a mounted file system or swap ends at: through partitions, dm, md, multipath and btrfs."""

from __future__ import annotations

import pytest

from iolane.host.block import disk_uses, disks
from iolane.model.pci.pcie_id import PcieId
from tests.unit.host.machine import Machine

VIRTUAL = "sys/devices/virtual/block"


@pytest.fixture
def disk(machine: Machine) -> Machine:
    """An NVMe disk of two partitions behind a port."""
    folder = machine.function("0000:01:00.0", under="0000:00:1d.0/", kind=0x010802, driver="nvme")
    whole = machine.block("nvme0n1", f"{folder}/nvme/nvme0", number="259:0")
    machine.block("nvme0n1p1", whole, number="259:1", partition="1")
    machine.block("nvme0n1p2", whole, number="259:2", partition="2")
    return machine


def said(machine: Machine) -> list[str]:
    return [f"{use.function} {use}" for use in disk_uses(machine.host)]


def test_an_idle_disk_is_not_used(disk: Machine) -> None:
    assert said(disk) == []
    assert disks(disk.host, PcieId(0, 1, 0, 0)) == ["nvme0n1"]


def test_a_mounted_partition(disk: Machine) -> None:
    disk.mount("259:2", "/srv/my\\040files")
    disk.mount("0:21", "/proc", kind="proc", source="proc")
    assert said(disk) == ["0000:01:00.0 nvme0n1 is mounted at /srv/my files (through nvme0n1p2)"]


def test_the_root_file_system_on_lvm_on_luks(disk: Machine) -> None:
    disk.block("dm-0", VIRTUAL, number="253:0", slaves=["nvme0n1p2"], dm__name="luks")
    disk.block("dm-1", VIRTUAL, number="253:1", slaves=["dm-0"], dm__name="vg-root")
    disk.mount("253:1", "/", source="/dev/mapper/vg-root")
    assert said(disk) == [
        "0000:01:00.0 nvme0n1 holds the host's root file system (through nvme0n1p2, luks, vg-root)"
    ]


def test_a_volume_that_nobody_has_mounted(disk: Machine) -> None:
    disk.block("dm-0", VIRTUAL, number="253:0", slaves=["nvme0n1p1"], dm__name="vg-spare")
    assert said(disk) == ["0000:01:00.0 nvme0n1 is part of vg-spare (through nvme0n1p1, vg-spare)"]


def test_swap_by_device_and_by_mapping(disk: Machine) -> None:
    disk.block("dm-0", VIRTUAL, number="253:0", slaves=["nvme0n1p1"], dm__name="vg-swap")
    names = ("/dev/nvme0n1p2", "/dev/mapper/vg-swap", "/swapfile")
    lines = ["Filename Type Size Used Priority", *(f"{name} partition 1 0 -2" for name in names)]
    disk.file("proc/swaps", "\n".join(lines))
    assert said(disk) == [
        "0000:01:00.0 nvme0n1 is swap (through nvme0n1p2)",
        "0000:01:00.0 nvme0n1 is swap (through nvme0n1p1, vg-swap)",
    ]


def test_a_mirror_needs_both_its_disks(disk: Machine) -> None:
    folder = disk.function("0000:00:17.0", kind=0x010601, driver="ahci")
    disk.block("sda", f"{folder}/ata1/host0/target0:0:0/0:0:0:0/block", number="8:0")
    disk.block("md0", VIRTUAL, number="9:0", slaves=["nvme0n1p2", "sda"])
    disk.mount("9:0", "/srv")
    assert said(disk) == [
        "0000:01:00.0 nvme0n1 is mounted at /srv (through nvme0n1p2, md0)",
        "0000:00:17.0 sda is mounted at /srv (through md0)",
    ]


def test_btrfs_names_one_of_its_devices(disk: Machine) -> None:
    """mountinfo has an anonymous number for btrfs, and one device of several as its source."""
    folder = disk.function("0000:02:00.0", kind=0x010802, driver="nvme")
    disk.block("nvme1n1", f"{folder}/nvme/nvme1", number="259:3")
    for name in ("nvme0n1p2", "nvme1n1"):
        disk.link(f"sys/fs/btrfs/0b7c/devices/{name}", str(disk.path_of_block(name)))
    disk.mount("0:33", "/data", kind="btrfs", source="/dev/nvme0n1p2")
    assert said(disk) == [
        "0000:01:00.0 nvme0n1 is mounted at /data (through nvme0n1p2)",
        "0000:02:00.0 nvme1n1 is mounted at /data",
    ]


def test_nvme_multipath_ends_at_every_controller(machine: Machine) -> None:
    """The disk belongs to the subsystem; its controllers are links there (nvme-multipath)."""
    subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    for number in (0, 1):
        folder = machine.function(f"0000:0{number + 1}:00.0", kind=0x010802, driver="nvme")
        machine.file(f"{folder}/nvme/nvme{number}/state", "live")
        machine.link(f"{subsystem}/nvme{number}", f"{folder}/nvme/nvme{number}")
    whole = machine.block("nvme0n1", subsystem, number="259:0")
    machine.block("nvme0n1p1", whole, number="259:1", partition="1")
    machine.mount("259:1", "/srv")
    assert said(machine) == [
        f"0000:0{number}:00.0 nvme0n1 is mounted at /srv (through nvme0n1p1)" for number in (1, 2)
    ]


def test_a_usb_disk_needs_its_controller(machine: Machine) -> None:
    folder = machine.function("0000:00:14.0", kind=0x0C0330, driver="xhci_hcd")
    machine.block("sda", f"{folder}/usb1/1-2/1-2:1.0/host4/target4:0:0/4:0:0:0/block", number="8:0")
    machine.mount("8:0", "/")
    assert said(machine) == ["0000:00:14.0 sda holds the host's root file system"]


def test_layers_in_a_ring_end(disk: Machine) -> None:
    disk.block("dm-0", VIRTUAL, number="253:0", slaves=["nvme0n1p1"])
    disk.block("dm-1", VIRTUAL, number="253:1", slaves=["dm-0"])
    disk.link(f"{VIRTUAL}/dm-0/slaves/dm-1", f"{VIRTUAL}/dm-1")
    disk.mount("253:1", "/srv")
    assert len(said(disk)) < 40
