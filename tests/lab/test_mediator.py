"""A stock guest in the lab with the NVMe disk behind a mediator: traced, recorded, lied to."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from pathlib import Path

import pytest

from iolane.backends.file import FileBackend
from iolane.devices.registry import create
from iolane.lab.machine import Lab, LabResult
from iolane.model.pci import PciDevice
from iolane.model.trace.recorded import read_recording
from iolane.model.trace.replay import Replay, ReplayResult
from tests.unit.devices.nvme.broken_models import ADMIN_STATUSES, BROKEN, EXPLAINED

MAP = "iolane.devices.nvme.registers:NvmeRegisters"
SECONDS = 1500.0
"""For a guest in the lab, traced access by access, on a machine that may be busy."""
pytestmark = pytest.mark.timeout(1800)
LIAR = """
from iolane.devices.nvme.registers import NvmeRegisters
from iolane.model.trace import TraceLevel


def never_ready(access):
    return access.value & ~1 if access.register == "bar0.CSTS" else None


def mediate(mediator):
    mediator.tracer.follow(TraceLevel.HOOK, hook=never_ready)
"""
SESSION = """
disk=/dev/nvme0n1
seq 10000 | head -c 32768 > /tmp/lines
dd if=$disk of=/tmp/kept bs=32k count=2 2> /dev/null
dd if=/tmp/lines of=$disk bs=4k oflag=direct 2> /dev/null
echo 4096 > /sys/module/nvme/parameters/sgl_threshold
dd if=/tmp/lines of=$disk bs=16k seek=2 oflag=direct 2> /dev/null
dd if=$disk bs=32k skip=1 count=1 iflag=direct 2> /dev/null | cmp - /tmp/lines
blkdiscard -o 32768 -l 32768 $disk
echo 1 > /sys/class/nvme/nvme0/reset_controller
dd if=$disk bs=32k count=1 iflag=direct 2> /dev/null | cmp - /tmp/lines
dd if=/tmp/kept of=$disk bs=32k oflag=direct conv=fsync 2> /dev/null
"""
"""Data by PRPs and by scatter gather lists, a flush, a discard, a reset; the disk is then as it was."""


def run(lab: Lab, passed: str, command: str, *options: str) -> LabResult:
    """`iolane run --pass` with the disk, in the lab."""
    words = [sys.executable, "-m", "iolane", "run", *options, "--accel", "kvm", "--memory", "256M"]
    words += ["--pass", f"{lab.address('nvme0')},{passed}", "--", "sh", "-c", command]
    return lab.run(words, timeout=SECONDS)


@pytest.mark.slow
def test_a_guest_behind_a_mediator(lab: Lab, tmp_path: Path) -> None:
    """Its driver finds the disk as it is, every register is named, and the recording replayed against our
    model differs in what is explained above.
    """
    result = run(lab, f"mediate={MAP},record=/tmp/guest.jsonl", "md5sum /dev/nvme0n1", "--trace", "registers")
    assert result.exit_code == 0, result.stderr.decode()[-3000:]
    image = lab.image("nvme0").read_bytes()
    assert result.stdout.split()[0].decode() == hashlib.md5(image).hexdigest()
    trace = result.stderr.decode()
    named = set(re.findall(r"(bar0[.+][^ \[]*)", trace))
    assert {"bar0.CAP", "bar0.CC", "bar0.CSTS", "bar0.AQA", "bar0.ASQ", "bar0.ACQ", "bar0.DOORBELL"} <= named
    assert not [name for name in named if name.startswith("bar0+")]
    assert "interrupt MSIX 1" in trace

    found = replay(fetch(lab, tmp_path), create(f"nvme,image={copy_of_the_disk(lab, tmp_path)}"))
    for differences in found.places.values():
        print(len(differences), differences[0])
    assert len(found.places) <= 10
    unexplained = [item for item in found.differences if not any(name in EXPLAINED for name in item.names)]
    assert not unexplained, unexplained[:10]
    assert not [place for place in found.places if place.startswith("memory.cq1")]
    statuses = {(item.recorded, item.replayed) for item in found.places["memory.cq0.STATUS.SC"]}
    assert statuses <= set(ADMIN_STATUSES)
    assert found.interrupts > 100


@pytest.mark.slow
def test_a_session_in_which_broken_models_are_caught(lab: Lab, tmp_path: Path) -> None:
    """Each bug is the first difference that is not explained, by its register and field or its completion.
    `guest.jsonl` of this test is what tests/unit/devices/nvme/recorded keeps.
    """
    result = run(lab, f"mediate={MAP},record=/tmp/guest.jsonl", f"set -e; {SESSION}")
    assert result.exit_code == 0, result.stderr.decode()[-3000:]
    path = fetch(lab, tmp_path)
    disk = copy_of_the_disk(lab, tmp_path)
    for broken in BROKEN:
        found = replay(path, broken.make(FileBackend(disk)), ignore=[*EXPLAINED])
        assert found.first is not None, broken
        assert found.first.place == broken.place, f"{broken}: {found.first}"
    found = replay(path, create(f"nvme,image={disk}"), ignore=[*EXPLAINED])
    assert found.first is None


def fetch(lab: Lab, folder: Path) -> Path:
    """The recording that was made in the lab."""
    path = folder / "guest.jsonl"
    path.write_bytes(lab.run("cat /tmp/guest.jsonl", timeout=SECONDS).stdout)
    return path


def copy_of_the_disk(lab: Lab, folder: Path) -> Path:
    return Path(shutil.copy(lab.image("nvme0"), folder / "disk.raw"))


def replay(path: Path, model: PciDevice, ignore: list[str] | None = None) -> ReplayResult:
    try:
        return Replay(read_recording(path), model, ignore=ignore).run()
    finally:
        model.close()


@pytest.mark.slow
def test_a_guest_that_is_lied_to(lab: Lab) -> None:
    """A hook takes CSTS.RDY away: the guest's driver says that the device does not get ready."""
    lab.run(["tee", "/tmp/liar.py"], stdin=LIAR.encode()).check()
    result = run(lab, "mediate=/tmp/liar.py:NvmeRegisters", "dmesg | grep nvme; ls /dev/nvme0n1")
    said = result.stdout.decode()
    assert "Device not ready" in said, said + result.stderr.decode()[-3000:]
    assert result.exit_code != 0
