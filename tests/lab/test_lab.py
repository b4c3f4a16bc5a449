"""The lab itself: what is in it, and that commands in it are what they would be here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import iolane.errors
from iolane.engines.qemu.agent import Type
from iolane.lab.disk import SECTOR, pattern_sector
from iolane.lab.machine import Lab, LabCommandError

ROOT = Path(__file__).resolve().parent.parent.parent


def test_each_device_is_where_the_lab_says(lab: Lab) -> None:
    expected = {
        "igb0": "0x8086 0x10c9",
        "nvme0": "0x1b36 0x0010",
        "e1000e0": "0x8086 0x10d3",
        "edu0": "0x1234 0x11e8",
    }
    for name, ids in expected.items():
        folder = f"/sys/bus/pci/devices/{lab.address(name)}"
        assert lab.check(f"echo $(cat {folder}/vendor {folder}/device)").strip() == ids


def test_groups_are_those_of_a_physical_host(lab: Lab) -> None:
    """Each device alone in its group; the chipset's functions share one (no ACS between them)."""
    listed = lab.check("cd /sys/kernel/iommu_groups && for g in *; do echo $(ls $g/devices); done")
    groups = {tuple(line.split()) for line in listed.splitlines()}
    for each in lab.devices:
        assert (str(each.address),) in groups
    assert ("0000:00:1f.0", "0000:00:1f.2", "0000:00:1f.3") in groups


def test_interrupts_are_remapped_and_virtual_functions_offered(lab: Lab) -> None:
    assert "IRQ remapping" in lab.check("dmesg")
    assert int(lab.check(f"cat /sys/bus/pci/devices/{lab.address('igb0')}/sriov_totalvfs")) >= 2


def test_exit_codes_and_output(lab: Lab) -> None:
    for code in (0, 3, 255):
        assert lab.run(f"exit {code}").exit_code == code
    result = lab.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
    assert lab.run(["printf", "%s|", "a b", "$HOME"]).stdout == b"a b|$HOME|"
    assert lab.run("cat", stdin=b"typed").stdout == b"typed"
    pieces: list[tuple[Type, bytes]] = []
    lab.run("echo live", on_output=lambda kind, data: pieces.append((kind, data)))
    assert pieces == [(Type.STDOUT, b"live\n")]


def test_a_failure_tells_what_the_kernel_said(lab: Lab) -> None:
    with pytest.raises(LabCommandError, match=r"(?s)exit code 1.*the lab's kernel:.*a sign of trouble"):
        lab.check("echo '<0>a sign of trouble' > /dev/kmsg; false")


def test_a_command_that_takes_too_long(lab: Lab) -> None:
    result = lab.run("echo before; sleep 1000", timeout=2)
    assert result.timed_out
    assert result.stdout == b"before\n"
    assert lab.run("true").exit_code == 0


def test_python_is_this_interpreter_with_this_checkout(lab: Lab) -> None:
    script = "import sys, iolane.errors; print(sys.executable, iolane.errors.__file__, sys.version_info[:2])"
    shown = lab.python(script, timeout=300).check().output.strip()
    assert shown == f"{sys.executable} {iolane.errors.__file__} {sys.version_info[:2]}"


def test_files_here_are_there_but_not_written(lab: Lab, tmp_path: Path) -> None:
    assert (
        lab.run(f"cmp {ROOT}/pyproject.toml -", stdin=(ROOT / "pyproject.toml").read_bytes()).exit_code == 0
    )
    mine = tmp_path / "mine"
    mine.write_text("as it was")
    lab.check(f"echo changed > {mine}; echo new > {tmp_path}/new; grep -q changed {mine}")
    assert mine.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [mine]


def test_the_shared_folder_both_ways(lab: Lab) -> None:
    (lab.share / "from-here").write_text("hello")
    assert lab.check("cat /lab/share/from-here") == "hello"
    lab.check("echo hello yourself > /lab/share/from-there; rm /lab/share/from-here")
    assert (lab.share / "from-there").read_text() == "hello yourself\n"
    assert not (lab.share / "from-here").exists()
    (lab.share / "from-there").unlink()


def test_the_disk_is_the_image_here(lab: Lab) -> None:
    """Its kernel reads the pattern; what it writes is in the file here."""
    expected = pattern_sector("nvme0", 7)
    assert lab.run("dd if=/dev/nvme0n1 bs=512 skip=7 count=1 2>/dev/null").stdout == expected
    assert lab.image("nvme0").read_bytes()[7 * SECTOR : 8 * SECTOR] == expected
    lab.check("echo written in the lab | dd of=/dev/nvme0n1 bs=512 seek=100000 conv=sync oflag=direct")
    with lab.image("nvme0").open("rb") as disk:
        assert os.pread(disk.fileno(), 19, 100000 * SECTOR) == b"written in the lab\n"


def test_kvm_is_there_for_guests_inside(lab: Lab) -> None:
    assert lab.run("test -c /dev/kvm -a -w /dev/kvm && grep -qw svm /proc/cpuinfo").exit_code == 0
    script = "import fcntl, os; print(fcntl.ioctl(os.open('/dev/kvm', os.O_RDWR), 0xAE00))"
    assert lab.python(script).check().output.strip() == "12"  # KVM_GET_API_VERSION


def test_vfio_is_there(lab: Lab) -> None:
    assert lab.run("test -c /dev/vfio/vfio && test -d /sys/bus/pci/drivers/vfio-pci").exit_code == 0


def test_nothing_is_blocked_of_the_kernels_own_drivers(lab: Lab) -> None:
    """They stay within what they have mapped."""
    before = lab.iommu_trace()
    lab.check("dd if=/dev/nvme0n1 of=/dev/null bs=64k count=64 iflag=direct 2>/dev/null")
    assert lab.iommu_trace() == before
