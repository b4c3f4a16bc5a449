"""The verdicts on whole machines: two composed by hand, one recorded (`iolane host --record`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from iolane.errors import IolaneError
from iolane.host.recording import expand, load, record
from iolane.host.report import report
from iolane.host.verdict import Survey
from iolane.model.pci.pcie_id import PcieId

HOSTS = Path(__file__).parent / "hosts"
NO_RESET, GROUP = "no-reset", "group-shared"
Said = dict[str, str]


def survey(name: str, folder: Path) -> Survey:
    return Survey(expand(load(HOSTS / f"{name}.json"), folder))


def verdicts(survey: Survey) -> Said:
    """Every function that is no bridge: yes, or `force` or `no` with the kinds of reasons."""
    said = {}
    for address, function in survey.functions.items():
        verdict = survey.verdict(address)
        kinds = " ".join(reason.kind for reason in verdict.reasons if reason.severity != "note")
        answer = "yes" if verdict.possible else f"{'force' if verdict.forcible else 'no'}: {kinds}"
        if not function.is_bridge:
            said[str(address)[5:]] = answer
    return said


def test_a_laptop(tmp_path: Path) -> None:
    """VT-d with iommu=pt; the Wi-Fi is the only way out; only what nothing needs can go."""
    laptop = survey("laptop", tmp_path)
    assert verdicts(laptop) == {
        "00:00.0": "force: platform no-reset",
        "00:02.0": "force: display",  # its RMRRs are relaxable
        "00:0d.0": "no: group-shared no-reset",
        "00:0d.2": "no: group-shared no-reset",
        "00:14.0": "force: no-reset",
        "00:14.2": "no: group-shared no-reset",
        "00:14.3": "force: default-route only-nic",
        "00:1f.0": "no: platform group-shared no-reset",
        "00:1f.3": "no: group-shared no-reset",
        "00:1f.4": "no: group-shared no-reset",
        "00:1f.5": "no: group-shared no-reset",
        "01:00.0": "force: disk",
        "22:00.0": "yes",  # in the Thunderbolt dock
        "2c:00.0": "yes",
    }
    disk = laptop.verdict(PcieId(0, 1, 0, 0)).reasons[0].text
    for use in ("the host's root file system (through nvme0n1p3, luks-", "/boot ", "/boot/efi ", "is swap "):
        assert use in disk
    notes = [reason.kind for reason in laptop.verdict(PcieId(0, 0x22, 0, 0)).reasons]
    assert notes == ["removable"]


def test_a_server(tmp_path: Path) -> None:
    """AMD-Vi on Linux 5.10, which names no reset methods."""
    server = survey("server", tmp_path)
    said = verdicts(server)
    platform = {f"{bus}:00.0" for bus in ("00", "40", "80", "c0")}
    assert {address for address, answer in said.items() if answer == "force: platform no-reset"} == platform
    for address in [*platform, *(f"{bus}:00.2" for bus in ("00", "40", "80", "c0"))]:
        del said[address]
    assert said == {
        "00:14.0": "force: no-reset",
        "00:14.3": "no: platform group-shared no-reset",
        "01:00.0": "force: display no-reset",
        "41:00.0": "no: virtual-functions",
        "41:00.1": "force: default-route",
        "41:01.0": "yes",
        "41:01.1": "yes",
        "41:01.2": "yes",
        "41:01.3": "yes",
        "42:00.0": "no: group-shared default-route",
        "42:00.1": "no: group-shared",
        "42:00.2": "no: group-shared",
        "42:00.3": "no: group-shared",
        "81:00.0": "force: disk",
        "82:00.0": "force: disk",
        "83:00.0": "force: disk",
        "84:00.0": "yes",
        "85:00.0": "yes",
        "c1:00.0": "no: group-shared",
        "c1:00.2": "no: group-shared",
        "c1:00.3": "no: group-shared",
        "c2:00.0": "yes",
        "c3:00.0": "no: reserved-memory",
    }
    shared = server.verdict(PcieId(0, 0x42, 0, 1)).reasons[0].text
    # .3 is with vfio-pci, the port is a bridge
    assert "42:00.0 (tg3), 0000:42:00.2 (tg3), in use" in shared
    together = tuple(PcieId(0, 0x42, 0, number) for number in range(3))
    assert server.taken_with(PcieId(0, 0x42, 0, 1)) == together
    assert "below br0" in server.verdict(PcieId(0, 0x41, 0, 1)).reasons[0].text
    assert "through nvme0n1p1, md0" in server.verdict(PcieId(0, 0x81, 0, 0)).reasons[0].text


def test_a_virtual_machine_without_iommu(tmp_path: Path) -> None:
    """Recorded on the kind of machine the tests run on."""
    machine = survey("virtual_machine", tmp_path)
    assert machine.iommu.missing is not None
    assert "virtual machine without one" in machine.iommu.missing.text
    said = verdicts(machine)
    assert all(answer.startswith("no: ") and "no-iommu" in answer for answer in said.values())
    assert said["00:02.0"] == "no: no-iommu no-vfio disk no-reset"
    assert said["00:03.0"] == "no: no-iommu no-vfio default-route only-nic no-reset"


@pytest.mark.parametrize("name", [path.stem for path in HOSTS.glob("*.json")])
def test_recording_a_recorded_host_changes_nothing(name: str, tmp_path: Path) -> None:
    recording = load(HOSTS / f"{name}.json")
    assert record(expand(recording, tmp_path), recording.about) == recording


@pytest.mark.parametrize("name", [path.stem for path in HOSTS.glob("*.json")])
def test_each_host_can_be_reported(name: str, tmp_path: Path) -> None:
    found = survey(name, tmp_path)
    document = report(found)
    assert len(document.functions) == len(found.functions)
    with pytest.raises(IolaneError, match="there is no PCI function"):
        found.verdict(PcieId(0, 0xFF, 0, 0))


@pytest.mark.parametrize(("name", "kind"), [("lab_vtd", "VT-d"), ("lab_amd", "AMD-Vi")])
def test_the_lab(name: str, kind: str, tmp_path: Path) -> None:
    """Recorded in it: the chipset's functions share a group, but had no drivers."""
    lab = survey(name, tmp_path)
    assert (lab.iommu.kind, lab.iommu.interrupt_remapping) == (kind, True)
    itself = {"00:01.0": "no: iommu"} if kind == "AMD-Vi" else {}  # AMD's is a PCI function too
    assert verdicts(lab) == {
        "00:00.0": "force: platform no-reset",
        **itself,
        **{f"00:{each}": "force: no-reset" for each in ("02.0", "03.0", "08.0", "1f.2", "1f.3")},
        "00:1f.0": "force: platform no-reset",
        **{f"0{bus}:00.0": "yes" for bus in (1, 2, 3)},
    }
    assert lab.functions[PcieId(0, 1, 0, 0)].msix_vectors == 10
    assert lab.functions[PcieId(0, 2, 0, 0)].reset_methods == ("flr", "bus")
