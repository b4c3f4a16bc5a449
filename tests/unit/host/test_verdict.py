"""Each reason against passing a function through, with its remedy; and that nothing else is said."""

from __future__ import annotations

import pytest

from iolane.errors import IolaneError
from iolane.host.verdict import Reason, Severity, Survey, Verdict
from iolane.model.pci.pcie_id import PcieId
from tests.unit.host.machine import ROOT_PORT, Machine, config_space

NIC = PcieId(0, 1, 0, 0)
IMPOSSIBLE, FORCE, NOTE = Severity.IMPOSSIBLE, Severity.FORCE, Severity.NOTE


def judged(machine: Machine, address: PcieId = NIC) -> Verdict:
    return Survey(machine.host).verdict(address)


def only(machine: Machine, address: PcieId = NIC) -> Reason:
    [reason] = judged(machine, address).reasons
    return reason


def kinds(verdict: Verdict) -> list[tuple[str, Severity]]:
    return [(reason.kind, reason.severity) for reason in verdict.reasons]


def test_nothing_stands_in_the_way(machine: Machine) -> None:
    machine.healthy().function("0000:01:00.0", group=1, driver="igb")
    verdict = judged(machine)
    assert (verdict.reasons, verdict.possible, verdict.forcible) == ((), True, True)
    verdict.require()


WITHOUT_IOMMU = [
    ("intel_iommu=on iommu=off", "DMAR", "turns it off", "boot without iommu=off"),
    ("iommu=noforce,off", "", "parameter iommu=off turns it off", "boot without iommu=off"),
    ("intel_iommu=off", "DMAR", "intel_iommu=off turns it off", "boot without intel_iommu=off"),
    ("amd_iommu=off", "IVRS", "amd_iommu=off turns it off", "boot without amd_iommu=off"),
    ("quiet", "DMAR", "the firmware offers VT-d", "boot with the kernel parameter intel_iommu=on"),
    ("intel_iommu=on,sm_on", "DMAR", "did not take it up", "see dmesg for DMAR"),
    ("quiet", "IVRS", "did not take it up", "see dmesg for AMD-Vi"),
    ("intel_iommu=on", "", "the firmware does not offer VT-d", "enable VT-d"),
]


@pytest.mark.parametrize(("parameters", "table", "text", "remedy"), WITHOUT_IOMMU)
def test_no_iommu(machine: Machine, parameters: str, table: str, text: str, remedy: str) -> None:
    machine.processor()
    machine.driver("vfio-pci")
    machine.function("0000:01:00.0")
    machine.file("proc/cmdline", f"root=/dev/sda1 {parameters}\n")
    if table:
        machine.file(f"sys/firmware/acpi/tables/{table}", "")
    reason = only(machine)
    assert (reason.kind, reason.severity) == ("no-iommu", IMPOSSIBLE)
    assert text in reason.text
    assert reason.remedy is not None
    assert remedy in reason.remedy


@pytest.mark.parametrize(
    ("vendor", "virtual", "text"),
    [
        ("AuthenticAMD", False, "does not offer AMD-Vi"),
        ("GenuineIntel", True, "a virtual machine without one"),
        ("unheard of", False, "the kernel found none"),
    ],
)
def test_no_iommu_by_processor(machine: Machine, vendor: str, virtual: bool, text: str) -> None:
    machine.processor(vendor, virtual=virtual)
    machine.driver("vfio-pci")
    machine.function("0000:01:00.0")
    assert text in only(machine).text


def test_a_function_that_the_iommu_leaves_out(machine: Machine) -> None:
    machine.healthy().function("0000:01:00.0")
    assert only(machine).kind == "no-group"


def test_interrupt_remapping(machine: Machine) -> None:
    machine.healthy().function("0000:01:00.0", group=1)
    machine.interrupts("IO-APIC", "PCI-MSIX-0000:01:00.0")
    assert (only(machine).kind, only(machine).severity) == ("unsafe-interrupts", IMPOSSIBLE)
    assert "firmware's setup" in (only(machine).remedy or "")
    machine.file("proc/cmdline", "intremap=off")
    assert only(machine).remedy == "boot without intremap=off"
    machine.file("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n")
    assert judged(machine).possible


def test_hardware_without_interrupt_remapping(machine: Machine) -> None:
    machine.healthy().function("0000:01:00.0", group=1)
    machine.file("sys/devices/virtual/iommu/dmar0/intel-iommu/ecap", "f0\n")  # IR is bit 3
    machine.interrupts("IO-APIC")
    assert only(machine).text.endswith("this IOMMU can't remap them")
    assert "allow_unsafe_interrupts=1" in (only(machine).remedy or "")


def test_a_group_shared_with_drivers_of_the_host(machine: Machine) -> None:
    machine.healthy()
    machine.function("0000:00:1f.0", kind=0x060100, driver="lpc_ich", group=9)
    machine.function("0000:00:1f.2", kind=0x010601, driver="ahci", group=9)
    machine.function("0000:00:1f.3", kind=0x0C0500, driver="i801_smbus", group=9)
    ahci, smbus = PcieId(0, 0, 0x1F, 2), PcieId(0, 0, 0x1F, 3)
    reason = only(machine, ahci)
    assert (reason.kind, reason.severity) == ("group-shared", IMPOSSIBLE)
    assert "group 9 is shared with 0000:00:1f.0 (lpc_ich), 0000:00:1f.3 (i801_smbus)" in reason.text
    survey = Survey(machine.host)
    assert survey.taken_with(ahci) == (PcieId(0, 0, 0x1F, 0), ahci, smbus)
    assert survey.verdict(ahci, together=survey.taken_with(ahci)).possible
    assert kinds(survey.verdict(PcieId(0, 0, 0x1F, 0), together=(ahci, smbus))) == [("platform", FORCE)]


@pytest.mark.parametrize("driver", [None, "vfio-pci", "pci-stub", "mlx5-vfio-pci", "qat_vfio_pci"])
def test_group_members_that_leave_dma_alone(machine: Machine, driver: str | None) -> None:
    machine.healthy()
    bridge = config_space(header_type=1, express=ROOT_PORT)
    machine.function("0000:00:1c.0", kind=0x060400, config=bridge, driver="pcieport", group=1)
    machine.function("0000:01:00.0", under="0000:00:1c.0/", group=1, driver="igb")
    machine.function("0000:01:00.1", under="0000:00:1c.0/", group=1, driver=driver)
    assert judged(machine).possible
    assert Survey(machine.host).taken_with(NIC) == (NIC,)


def test_a_member_that_is_no_pci_function(machine: Machine) -> None:
    machine.healthy().function("0000:01:00.0", group=1)
    (machine.root / "sys/kernel/iommu_groups/1/devices/arm-smmu-test").mkdir()
    assert "arm-smmu-test" in only(machine).text


def test_memory_that_the_firmware_keeps(machine: Machine) -> None:
    machine.healthy().group(1, regions="0x7d000000 0x7d7fffff direct\n0xfee00000 0xfeefffff msi\n")
    machine.function("0000:01:00.0", group=1)
    assert (only(machine).kind, only(machine).severity) == ("reserved-memory", IMPOSSIBLE)
    assert "0x7d000000-0x7d7fffff" in only(machine).text
    machine.group(1, regions="0x7d000000 0x7d7fffff direct-relaxable\n")
    assert judged(machine).possible


def test_no_vfio_pci(machine: Machine) -> None:
    machine.iommu()
    machine.function("0000:01:00.0", group=1)
    assert only(machine).kind == "no-vfio"
    machine.file("proc/sys/kernel/osrelease", "6.1.0-9-amd64\n")
    machine.file("lib/modules/6.1.0-9-amd64/modules.dep", "kernel/drivers/vfio/pci/vfio-pci.ko: x.ko\n")
    assert judged(machine).possible


def test_models_that_vfio_pci_refuses(machine: Machine) -> None:
    machine.healthy().function("0000:01:00.0", ids="8086:37c8", group=1)
    assert (only(machine).kind, only(machine).severity) == ("denied", IMPOSSIBLE)
    machine.file("sys/module/vfio_pci/parameters/disable_denylist", "Y\n")
    assert judged(machine).possible


def test_bridges_are_not_passed(machine: Machine) -> None:
    bridge = config_space(header_type=1, express=ROOT_PORT)
    machine.healthy().function("0000:01:00.0", kind=0x060400, config=bridge, group=1, reset=None)
    assert (only(machine).kind, only(machine).severity) == ("bridge", IMPOSSIBLE)


def test_what_is_no_endpoint(machine: Machine) -> None:
    machine.healthy().function("0000:01:00.0", config=config_space(express=0xA), group=1)
    assert only(machine).kind == "not-endpoint"


def test_a_function_that_does_not_answer(machine: Machine) -> None:
    machine.healthy().function("0000:01:00.0", config=b"\xff" * 256, group=1)
    assert kinds(judged(machine)) == [("no-answer", IMPOSSIBLE)]


def test_a_virtual_function_shows_no_ids_of_its_own(machine: Machine) -> None:
    """Vendor and device id read FFFFh in its config space (PCI Express Base, 9.3.4.1.1)."""
    config = b"\xff\xff\xff\xff" + config_space(msix=3)[4:]
    machine.healthy().function("0000:01:10.0", ids="8086:10ca", config=config, group=1)
    assert judged(machine, PcieId(0, 1, 0x10, 0)).possible


@pytest.mark.parametrize("kind", [0x060000, 0x060100, 0x080300])
def test_the_platform_itself_needs_force(machine: Machine, kind: int) -> None:
    machine.healthy().function("0000:01:00.0", kind=kind, group=1)
    assert kinds(judged(machine)) == [("platform", FORCE)]


def test_the_iommu_is_not_passed(machine: Machine) -> None:
    machine.healthy().function("0000:01:00.0", kind=0x080600, group=1)
    assert kinds(judged(machine)) == [("iommu", IMPOSSIBLE)]


def test_what_the_host_needs_can_be_forced(machine: Machine) -> None:
    folder = machine.healthy().function("0000:01:00.0", kind=0x010802, driver="nvme", group=1)
    machine.block("nvme0n1", f"{folder}/nvme/nvme0", number="259:0")
    machine.mount("259:0", "/")
    verdict = judged(machine)
    assert kinds(verdict) == [("disk", FORCE)]
    assert (verdict.possible, verdict.forcible) == (False, True)
    with pytest.raises(IolaneError, match=r"holds a disk in use: nvme0n1 holds the host's root .*--force"):
        verdict.require()
    verdict.require(force=True)


def test_force_does_not_do_the_impossible(machine: Machine) -> None:
    machine.healthy().function("0000:01:00.0", ids="8086:37c8", group=1, reset=None)
    with pytest.raises(IolaneError, match="vfio-pci refuses this model") as caught:
        judged(machine).require(force=True)
    assert "--force" not in str(caught.value)


def test_the_boot_display(machine: Machine) -> None:
    machine.healthy().function("0000:01:00.0", kind=0x030000, driver="i915", group=1, boot_vga="1")
    assert kinds(judged(machine)) == [("display", FORCE)]


def test_without_reset_state_goes_from_guest_to_guest(machine: Machine) -> None:
    machine.healthy().function("0000:01:00.0", group=1, reset=None)
    assert kinds(judged(machine)) == [("no-reset", FORCE)]


def test_a_physical_function_keeps_its_virtual_ones(machine: Machine) -> None:
    machine.healthy().function("0000:01:00.0", driver="igb", group=1, sriov_totalvfs="8", sriov_numvfs="2")
    assert kinds(judged(machine)) == [("virtual-functions", IMPOSSIBLE)]
    assert "iolane host vfs 0000:01:00.0 0" in (only(machine).remedy or "")


def test_notes_are_no_obstacle(machine: Machine) -> None:
    machine.healthy().function(
        "0000:01:00.0", group=1, power_state="D3cold", removable="removable", power__wakeup="enabled"
    )
    assert kinds(judged(machine)) == [("asleep", NOTE), ("wakeup", NOTE), ("removable", NOTE)]
    assert judged(machine).possible


def test_the_function_must_be_there(machine: Machine) -> None:
    with pytest.raises(IolaneError, match=r"there is no PCI function 0000:01:00.0"):
        judged(machine)
