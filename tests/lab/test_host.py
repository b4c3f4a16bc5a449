"""The host package on real sysfs: verdicts, taking and giving back, kill -9 in the middle, SR-IOV.

Each test is one script in the lab, which prints what it saw as JSON: an interpreter takes seconds to start.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from iolane.host.recording import Recording, expand
from iolane.host.verdict import Survey
from iolane.lab.disk import SECTOR, pattern_sector
from iolane.lab.machine import Lab
from iolane.model.pci.pcie_id import PcieId
from tests.lab.scripts import seen

LPC, AHCI, SMBUS = (PcieId(0, 0, 0x1F, function) for function in (0, 2, 3))


def test_verdicts_and_groups(lab: Lab, tmp_path: Path) -> None:
    """Of the lab as it is; and a recording of it is judged alike here."""
    found = seen(
        lab,
        """
import msgspec
from iolane.host.recording import record
from iolane.host.report import report
survey = Survey(Host())
seen["report"] = msgspec.to_builtins(report(survey))
seen["recording"] = msgspec.to_builtins(record(Host(), "the lab"))
""",
    )
    document = found["report"]
    assert (document["iommu"], document["interrupt_remapping"]) == ("VT-d", True)
    groups = [group["members"] for group in document["groups"]]
    for each in lab.devices:
        assert [str(each.address)] in groups
    assert [str(LPC), str(AHCI), str(SMBUS)] in groups
    functions = {function["address"]: function for function in document["functions"]}
    nic, disk, edu = (functions[str(lab.address(name))] for name in ("igb0", "nvme0", "edu0"))
    assert (nic["driver"], nic["possible"], nic["reset_methods"][0]) == ("igb", True, "flr")
    assert (nic["msix_vectors"], nic["sriov"]["total"]) == (10, 7)
    assert (disk["driver"], disk["possible"], disk["kind"]) == ("nvme", True, "NVMe controller")
    assert [reason["kind"] for reason in edu["reasons"]] == ["no-reset"]
    assert edu["msi_vectors"] == 1
    recorded = Survey(expand(Recording(**found["recording"]), tmp_path))
    for address, function in functions.items():
        verdict = recorded.verdict(PcieId.from_string(address))
        assert [reason.text for reason in verdict.reasons] == [
            reason["text"] for reason in function["reasons"]
        ]


def test_a_shared_group_is_refused_with_its_members_named(lab: Lab) -> None:
    found = seen(
        lab,
        """
ahci, smbus = address(sys.argv[1]), address(sys.argv[2])
seen["before"] = state(ahci, smbus)
seen["refusal"] = refusal(lambda: take([ahci], force=True))
seen["after"] = state(ahci, smbus)
seen["taken"] = [str(each.address) for each in take([ahci], whole_group=True, force=True)]
seen["during"] = state(ahci, smbus)
release()
seen["back"] = state(ahci, smbus)
""",
        AHCI,
        SMBUS,
    )
    assert found["before"] == [["ahci", "(null)"], ["i801_smbus", "(null)"]]
    assert f"shared with {SMBUS} (i801_smbus)" in found["refusal"]
    assert found["after"] == found["before"]
    assert found["taken"] == [str(AHCI), str(SMBUS)]
    assert found["during"] == [["vfio-pci", "vfio-pci"]] * 2
    assert found["back"] == found["before"]


def test_a_disk_in_use_is_refused(lab: Lab) -> None:
    """Mounted, or held in a way that sysfs doesn't show. The disk's beginning is put back afterwards."""
    found = seen(
        lab,
        """
disk = address(sys.argv[1])
with open("/dev/nvme0n1", "rb") as device:
    beginning = device.read(4 << 20)
try:
    # the lab has ext4 alone, which mounts ext2 too
    subprocess.run("mkfs.ext2 -q -F -E nodiscard /dev/nvme0n1 2048k".split(), check=True)
    os.makedirs("/tmp/mounted", exist_ok=True)
    subprocess.run("mount -t ext4 /dev/nvme0n1 /tmp/mounted".split(), check=True)
    seen["mounted"] = refusal(lambda: take([disk]))
    subprocess.run(["umount", "/tmp/mounted"], check=True)
    held = os.open("/dev/nvme0n1", os.O_RDONLY | os.O_EXCL)
    seen["held"] = refusal(lambda: take([disk]))
    os.close(held)
finally:
    with open("/dev/nvme0n1", "r+b", buffering=0) as device:
        device.write(beginning)
        os.fsync(device.fileno())
seen["state"] = state(disk)
""",
        lab.address("nvme0"),
    )
    assert "holds a disk in use: nvme0n1 is mounted at /tmp/mounted" in found["mounted"]
    assert "--force" in found["mounted"]
    assert "nvme0n1 is claimed by a file system or volume manager" in found["held"]
    assert found["state"] == [["nvme", "(null)"]]


def test_an_nvme_disk_is_taken_and_works_again(lab: Lab) -> None:
    found = seen(
        lab,
        """
from iolane.host.users import vfio_users
disk = address(sys.argv[1])
with Taking([disk]) as taking:
    seen["during"] = state(disk)
    group = Host().link(f"/sys/bus/pci/devices/{disk}/iommu_group")
    descriptor = os.open(f"/dev/vfio/{group}", os.O_RDWR)
    seen["users"] = vfio_users(Host(), disk)
    os.close(descriptor)
seen["after"] = state(disk)
Host().wait(lambda: os.path.exists("/dev/nvme0n1"), what="the disk is back", deadline=30)
with open("/dev/nvme0n1", "rb") as device:
    device.seek(7 * 512)
    seen["sector"] = device.read(512).hex()
seen["entries"] = len(Journal().entries())
""",
        lab.address("nvme0"),
    )
    assert found["during"] == [["vfio-pci", "vfio-pci"]]
    assert len(found["users"]) == 1
    assert "python" in found["users"][0]
    assert found["after"] == [["nvme", "(null)"]]
    assert bytes.fromhex(found["sector"]) == pattern_sector("nvme0", 7)
    assert len(pattern_sector("nvme0", 7)) == SECTOR
    assert found["entries"] == 0


@pytest.mark.slow
def test_killed_at_each_step_of_taking_and_giving_back(lab: Lab) -> None:
    """kill -9 before and after every write to sysfs: the next start brings the drivers back."""
    found = seen(
        lab,
        """
disk = address(sys.argv[1])
before = state(disk)
def work(host):
    take([disk], host=host)
    release([disk], host=host)
steps = 0
while killed(steps, work):
    recover()
    if Journal().entries():  # it was taken for good when the kill came
        release()
    assert (steps, state(disk), Journal().entries()) == (steps, before, [])
    steps += 1
seen["steps"], seen["before"], seen["after"] = steps, before, state(disk)
""",
        lab.address("nvme0"),
        timeout=600,
    )
    assert found["before"] == [["nvme", "(null)"]]
    assert found["after"] == found["before"]
    assert found["steps"] >= 12  # override, unbind, probe, each twice, both ways


def test_virtual_functions_with_mac_taken_and_removed(lab: Lab) -> None:
    found = seen(
        lab,
        """
from iolane.host.sriov import make_virtual_functions
from iolane.host.network import interfaces
from pyroute2 import IPRoute
nic = address(sys.argv[1])
made = make_virtual_functions(nic, 2, macs=["52:54:00:aa:00:01"])
seen["made"], seen["drivers"] = [str(each) for each in made], state(*made)
survey = Survey(Host())
seen["groups"] = [len(survey.group_of(each).members) for each in made]
seen["whose"] = [str(survey.functions[each].physical_function) for each in made]
seen["possible"] = [survey.verdict(each).possible for each in made]
seen["refusal"] = refusal(lambda: survey.verdict(nic).require())
[name] = [each.name for each in interfaces(Host()) if each.function == nic]
with IPRoute() as route:
    [index] = route.link_lookup(ifname=name)
    [link] = route.link("get", index=index, ext_mask=1)
    infos = link.get_attr("IFLA_VFINFO_LIST").get_attrs("IFLA_VF_INFO")
    seen["macs"] = [each.get_attr("IFLA_VF_MAC")["mac"] for each in infos]
take([made[0]])
seen["taken"] = state(made[0])
seen["released"] = [[str(each.address), each.virtual_functions] for each in release([nic])]
folder = f"/sys/bus/pci/devices/{nic}"
seen["left"] = [Host().read(f"{folder}/{name}") for name in ("sriov_numvfs", "sriov_drivers_autoprobe")]
seen["driver"] = state(nic)
""",
        lab.address("igb0"),
    )
    assert len(found["made"]) == 2
    assert found["drivers"] == [[None, "(null)"]] * 2
    assert found["groups"] == [1, 1]
    assert found["whose"] == [str(lab.address("igb0"))] * 2
    assert found["possible"] == [True, True]
    assert "2 virtual functions of it are there" in found["refusal"]
    assert found["macs"][0] == "52:54:00:aa:00:01"
    assert found["taken"] == [["vfio-pci", "vfio-pci"]]
    assert found["released"] == [[found["made"][0], False], [str(lab.address("igb0")), True]]
    assert (found["left"], found["driver"]) == (["0", "1"], [["igb", "(null)"]])


@pytest.mark.slow
def test_killed_at_each_step_of_making_virtual_functions(lab: Lab) -> None:
    found = seen(
        lab,
        """
from iolane.host.sriov import make_virtual_functions
nic = address(sys.argv[1])
folder = f"/sys/bus/pci/devices/{nic}"
def whole():
    return [Host().read(f"{folder}/{name}") for name in ("sriov_numvfs", "sriov_drivers_autoprobe")]
steps = 0
while killed(steps, lambda host: make_virtual_functions(nic, 2, host=host)):
    recover()
    if Journal().entries():
        release()
    assert (steps, whole(), state(nic)) == (steps, ["0", "1"], [["igb", "(null)"]])
    steps += 1
release([nic])
seen["steps"], seen["after"] = steps, whole()
""",
        lab.address("igb0"),
        timeout=600,
    )
    assert found["steps"] == 6  # autoprobe off, the number, autoprobe on, each twice
    assert found["after"] == ["0", "1"]
