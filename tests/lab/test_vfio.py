"""Physical functions from Python over the VFIO carrier, and what the IOMMU keeps them from.

`tests/lab/vfio/in_lab.py` runs in the lab. What must be blocked is judged by the content of memory there, and
by the emulated IOMMU's own record here.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iolane.devices.registry import create
from iolane.lab.disk import SECTOR, pattern_sector
from iolane.lab.fault_trace import Blocked, TraceRecord
from iolane.lab.hardware import Iommu, Kind, LabDevice
from iolane.lab.machine import Lab, LabConfig, LabResult
from iolane.model.trace.recorded import read_recording
from iolane.model.trace.replay import Replay
from tests.lab.conftest import tell

SECONDS = 300.0
NOWHERE, READ_ONLY, GONE, OTHERS = 0x200_0000, 0x20_0000, 0x30_0000, 0x500_0000
FORGED_ENTRY = 0x1FF0
Told = dict[str, dict[str, Any]]


def attempt(lab: Lab, what: str, *devices: str) -> LabResult:
    addresses = [str(lab.address(name)) for name in devices]
    return lab.run([sys.executable, "-m", "tests.lab.vfio.in_lab", what, *addresses], timeout=SECONDS)


def told_by(result: LabResult) -> Told:
    """What the script said, by its first word."""
    lines = [json.loads(line) for line in result.stdout.decode().splitlines() if line.startswith("{")]
    return {line.pop("what"): line for line in lines}


def drive(lab: Lab, what: str, *devices: str) -> Told:
    result = attempt(lab, what, *devices)
    assert result.exit_code == 0, f"{result.output}\n{result.stderr.decode()}\n{result.kernel}"
    return told_by(result)


def test_edu(lab: Lab) -> None:
    """DMA both ways, MSI; edu has no FLR and shares its bus, so it says that it can't be reset, or is."""
    told = drive(lab, "edu", "edu0")
    assert told["edu"] == {"identification": 0x010000ED, "liveness": ~0x1234_5678 & 0xFFFF_FFFF}
    assert told["edu interrupts"]["came"] == [True] * 8
    assert told["edu dma"] == {"done": [True, True], "equal": True}
    if told["edu reset"]["possible"]:
        assert told["edu after reset"] == {"identification": 0x010000ED}


def test_intx_is_a_level(lab: Lab) -> None:
    """Through the carrier, unmasked by an eventfd as KVM does at the guest's end of interrupt: told once for
    each time that it is raised, again while it stands (PCI 3.0, 2.2.6), and the host's kernel takes no more
    interrupts than that: it neither sticks nor storms.
    """
    told = drive(lab, "intx", "edu0")
    assert told["intx raised"] == {"came": 1, "quiet": True, "host": 1}
    assert told["intx still asserted"] == {"came": 1, "quiet": True}
    assert told["intx taken back"]["quiet"]
    assert told["intx raised again"] == {"came": 1, "quiet": True}
    assert told["intx ended without one"]["quiet"]
    assert told["intx masked"] == {"quiet": True, "came": 1, "taken_back": True}
    rounds = told["intx rounds"]
    assert rounds["came"] == rounds["host"] == rounds["rounds"]
    assert rounds["quiet"]


def test_nvme(lab: Lab) -> None:
    """Identify, read and write by an I/O queue with MSI-X; FLR disables the controller."""
    told = drive(lab, "nvme", "nvme0")
    assert told["nvme"]["serial"] == "LAB-nvme0"
    assert bytes.fromhex(told["nvme dma"]["first"]) == pattern_sector("nvme0", 0)[:SECTOR]
    assert told["nvme dma"]["equal"]
    assert told["nvme FLR"] == {"before": [1, 1], "after": [0, 0]}
    print(told["nvme read, interrupt"])


def test_nvme_behind_a_mediator(lab: Lab, tmp_path: Path) -> None:
    """Traced, every register has its name; with nothing to trace there is no trap at all. The recording is
    replayed against our model.
    """
    told = drive(lab, "mediated", "nvme0")
    trapped, direct = told["mediated trapped"], told["mediated direct"]
    assert trapped["equal"]
    assert direct["equal"]
    assert {"bar0.CC", "bar0.CSTS", "bar0.AQA", "bar0.ASQ", "bar0.ACQ"} <= trapped["trapped"].keys()
    assert all(not name.startswith("bar0+") for name in trapped["trapped"])
    assert direct["trapped"] == {}
    assert direct["mapped"][0][0] == 0
    recording = read_recording(lab.share / "nvme.jsonl")
    assert recording.complete
    disk = tmp_path / "disk.raw"
    disk.touch()
    os.truncate(disk, 64 << 20)
    shutil.copy(recording.path, os.environ.get("IOLANE_KEEP_RECORDING", tmp_path))
    model = create(f"nvme,image={disk}")
    try:
        result = Replay(recording, model).run()
    finally:
        model.close()
    places = sorted(result.places)
    print(places, [str(item) for item in result.differences[:20]])
    assert len(places) <= 10
    assert all(place.startswith(("bar0.CAP.", "bar0.VS")) for place in places), places


def test_igb_virtual_functions(lab: Lab) -> None:
    """Each in a group of its own; a frame goes from the memory of one to that of the other."""
    told = drive(lab, "igb", "igb0")
    assert len(set(told["igb"]["groups"])) == 2
    assert told["igb vectors"]["came"] == [True] * 3
    assert told["igb dma"] == {"sent": True, "equal": True}
    assert told["igb FLR"] == {"before": 1, "after": 0}


# What must be blocked.


class Attempts:
    """What the script said, and what the IOMMU recorded of edu meanwhile."""

    def __init__(self, lab: Lab) -> None:
        before = len(lab.iommu_trace())
        self.told = drive(lab, "blocked", "edu0", "nvme0")
        self.faults = lab.iommu_trace()[before:]
        self.source = lab.address("edu0")

    def dma(self, address: int, *, write: bool) -> list[TraceRecord]:
        return [
            each
            for each in self.faults
            if each.blocked is Blocked.DMA
            and each.source == self.source
            and each.write is write
            and each.address is not None
            and each.address & ~0xFFF == address
        ]


@pytest.fixture(scope="module")
def attempts(lab: Lab) -> Attempts:
    return Attempts(lab)


def test_what_the_carrier_refuses(attempts: Attempts) -> None:
    """The window of interrupts, a second map of an address, an address beyond the IOMMU's."""
    interrupts, overlap, beyond = attempts.told["refused"]["words"]
    assert "reserved window" in interrupts
    assert "overlaps" in overlap
    assert "beyond what the IOMMU can address" in beyond
    assert attempts.told["ranges"]["ranges"][0] == "0x0-0xfedfffff"
    assert attempts.told["ranges"]["available"] > 1000


@pytest.mark.parametrize(
    ("what", "address"),
    [
        ("read-only write", READ_ONLY),
        ("write after unmap", GONE),
        ("other machine write", OTHERS),
    ],
)
def test_write_is_blocked(attempts: Attempts, what: str, address: int) -> None:
    """The device says that it is done, whatever the IOMMU made of it; memory knows better."""
    assert attempts.told[what]["kept"]
    assert attempts.dma(address, write=True)


def test_write_to_nothing_is_blocked(attempts: Attempts) -> None:
    assert "unmapped write" in attempts.told
    assert attempts.dma(NOWHERE, write=True)


@pytest.mark.parametrize(
    ("what", "address"),
    [("unmapped read", NOWHERE), ("read after unmap", GONE), ("other machine read", OTHERS)],
)
def test_read_is_blocked(attempts: Attempts, what: str, address: int) -> None:
    assert not attempts.told[what]["leaked"]
    assert attempts.dma(address, write=False)


def test_forged_interrupt_is_blocked(attempts: Attempts) -> None:
    """Reason 0x22: the interrupt remapping entry is not present (VT-d, appendix A)."""
    interrupts = [each for each in attempts.faults if each.blocked is Blocked.INTERRUPT]
    # QEMU does not know who wrote it: the record's source is 0xffff.
    assert [(each.reason, each.index) for each in interrupts] == [(0x22, FORGED_ENTRY)]


def test_what_is_allowed_still_works(attempts: Attempts) -> None:
    assert attempts.told["allowed read"]["leaked"]
    assert attempts.told["after all that"]["works"]
    assert attempts.told["content"]["equal"]


# NVMe virtual functions, not in the lab of all: a namespace that controllers share is a multipath disk.


@pytest.fixture(scope="module")
def vf_lab() -> Iterator[Lab]:
    with Lab(LabConfig(iommu=Iommu.VTD, devices=[LabDevice(Kind.NVME, vfs=2)]), report=tell) as booted:
        yield booted


@pytest.mark.slow
def test_nvme_virtual_function(vf_lab: Lab) -> None:
    """Its controller is offline until it has queues and interrupts (NVMe Base 2.0, 8.26); then it is one like
    any other, with the disk that all of them share.
    """
    told = drive(vf_lab, "nvme_vf", "nvme0")
    # Controller, online, number of the virtual function, queue pairs, interrupts.
    assert told["nvme secondaries"]["listed"] == [[1, True, 1, 2, 2], [2, True, 2, 2, 2]]
    found = told["nvme vf"]
    assert (found["serial"], found["controller"]) == ("LAB-nvme0", 1)
    assert bytes.fromhex(found["first"]) == pattern_sector("nvme0", 0)[:SECTOR]
    assert found["equal"]
    with vf_lab.image("nvme0").open("rb") as image:
        assert os.pread(image.fileno(), SECTOR, 4000 * SECTOR) == bytes(range(256)) * 2
    assert told["nvme other vf"]["reasons"] == []
    assert told["nvme vfs gone"]["online"] == [False, False]


# AMD-Vi.


@pytest.fixture(scope="module")
def amd_lab() -> Iterator[Lab]:
    devices = [LabDevice(Kind.EDU), LabDevice(Kind.NVME), LabDevice(Kind.IGB)]
    with Lab(LabConfig(iommu=Iommu.AMD, devices=devices)) as booted:
        yield booted


@pytest.mark.slow
def test_amd_vi(amd_lab: Lab) -> None:
    """The same by AMD-Vi. The blocked write comes last: Linux 6.1 may not survive the fault."""
    test_edu(amd_lab)
    test_nvme(amd_lab)
    test_igb_virtual_functions(amd_lab)
    result = attempt(amd_lab, "last_act", "edu0")
    told = told_by(result)
    assert "about to write" in told, result.output
    if "blocked write" in told:
        assert told["blocked write"]["kept"]
    faults = [each for each in amd_lab.iommu_trace() if each.blocked is Blocked.DMA]
    assert any(each.address is not None and each.address & ~0xFFF == GONE for each in faults), faults
