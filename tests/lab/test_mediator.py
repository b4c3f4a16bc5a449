"""A stock guest in the lab with the NVMe disk behind a mediator: traced, recorded, lied to."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from pathlib import Path

import pytest

from iolane.devices.registry import create
from iolane.lab.machine import Lab, LabResult
from iolane.model.trace.recorded import read_recording
from iolane.model.trace.replay import Replay

MAP = "iolane.devices.nvme.registers:NvmeRegisters"
SECONDS = 600.0
LIAR = """
from iolane.devices.nvme.registers import NvmeRegisters
from iolane.model.trace import TraceLevel


def never_ready(access):
    return access.value & ~1 if access.register == "bar0.CSTS" else None


def mediate(mediator):
    mediator.tracer.follow(TraceLevel.HOOK, hook=never_ready)
"""
EXPLAINED = {
    "bar0.VS": "QEMU's controller is of version 1.4",
    "bar0.CAP.MQES": "QEMU has longer queues",
    "bar0.CAP.TO": "QEMU promises to be faster",
    "bar0.CAP.CRMS": "ready modes came with version 2.0",
    "interrupt.INTX[0]": "our controller has no interrupt pin",
    "memory.cq0.STATUS": "QEMU has 256 namespace ids, most of them inactive; for us they are invalid",
    "memory.cq0.RESULT": "QEMU has more queues",
    "memory.cq1.STATUS": "QEMU takes scatter gather lists, which we do not offer",
}


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

    path = tmp_path / "guest.jsonl"
    path.write_bytes(lab.run("cat /tmp/guest.jsonl", timeout=SECONDS).stdout)
    disk = tmp_path / "disk.raw"
    shutil.copy(lab.image("nvme0"), disk)
    model = create(f"nvme,image={disk}")
    try:
        result_ = Replay(read_recording(path), model).run()
    finally:
        model.close()
    for found in result_.places.values():
        print(len(found), found[0])
    assert len(result_.places) <= 10
    unexplained = [item for item in result_.differences if not any(name in EXPLAINED for name in item.names)]
    assert not unexplained, unexplained[:10]
    assert result_.interrupts > 100


@pytest.mark.slow
def test_a_guest_that_is_lied_to(lab: Lab) -> None:
    """A hook takes CSTS.RDY away: the guest's driver says that the device does not get ready."""
    lab.run(["tee", "/tmp/liar.py"], stdin=LIAR.encode()).check()
    result = run(lab, "mediate=/tmp/liar.py:NvmeRegisters", "dmesg | grep nvme; ls /dev/nvme0n1")
    said = result.stdout.decode()
    assert "Device not ready" in said, said + result.stderr.decode()[-3000:]
    assert result.exit_code != 0
