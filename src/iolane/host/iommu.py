"""Whether this host translates DMA and remaps interrupts, and if not, what would make it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from iolane.host.sysfs import Host

UNITS = "/sys/class/iommu"
TABLES = "/sys/firmware/acpi/tables"
UNSAFE_INTERRUPTS = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
_ECAP_IR = 1 << 3
"""Extended Capability Register, IR: interrupt remapping is supported (VT-d, 11.4.3)."""
_CAP_MGAW_SHIFT, _CAP_MGAW_MASK = 16, 0x3F
"""Capability Register, MGAW: the widest guest address less one (VT-d, 11.4.2)."""
_REMAPPED = re.compile(r"\bIR-(?:IO-APIC|PCI-MSI)")
_CHIP = re.compile(r"\b(?:IO-APIC|PCI-MSI)")


class IommuKind(StrEnum):
    """Who made the IOMMU."""

    VTD = "VT-d"
    AMD_VI = "AMD-Vi"
    OTHER = "other"


@dataclass(frozen=True)
class Shortcoming:
    """What is missing and what would bring it."""

    text: str
    remedy: str


@dataclass(frozen=True)
class IommuState:
    """The host's IOMMUs as one thing; `missing` and `unsafe` say what is wrong, None that nothing is."""

    kind: IommuKind | None
    units: tuple[str, ...]
    interrupt_remapping: bool | None
    """None where nothing shows it."""
    missing: Shortcoming | None
    unsafe: Shortcoming | None
    """Interrupt remapping is off, and VFIO was not told to go on without it."""


def read_iommu(host: Host) -> IommuState:
    """Look at the units, the firmware's tables, the kernel's parameters and the interrupt chips."""
    units = tuple(host.names(UNITS))
    kind = _kind(units)
    remapping = _interrupt_remapping(host)
    missing = None if units else _why_none(host)
    allowed = host.read(UNSAFE_INTERRUPTS) in ("Y", "1")
    unsafe = _why_unsafe(host, units) if units and remapping is False and not allowed else None
    return IommuState(kind, units, remapping, missing, unsafe)


def address_width(host: Host, unit: str) -> int | None:
    """Bits of IOVA that a VT-d unit translates at most (MGAW); None for others, which don't show it."""
    try:
        capability = int(host.read(f"{UNITS}/{unit}/intel-iommu/cap") or "", 16)
    except ValueError:
        return None
    return (capability >> _CAP_MGAW_SHIFT & _CAP_MGAW_MASK) + 1


def _kind(units: tuple[str, ...]) -> IommuKind | None:
    if not units:
        return None
    if units[0].startswith("dmar"):
        return IommuKind.VTD
    return IommuKind.AMD_VI if units[0].startswith("ivhd") else IommuKind.OTHER


def _interrupt_remapping(host: Host) -> bool | None:
    """The kernel names a chip behind the remapping hardware IR-IO-APIC, IR-PCI-MSI, IR-PCI-MSIX."""
    interrupts = host.read("/proc/interrupts") or ""
    if _REMAPPED.search(interrupts):
        return True
    return False if _CHIP.search(interrupts) else None


def _why_none(host: Host) -> Shortcoming:
    words = (host.read("/proc/cmdline") or "").split()
    for word in ("iommu=off", "intel_iommu=off", "amd_iommu=off"):
        if any(_turns_off(word, given) for given in words):
            return Shortcoming(f"no IOMMU: the kernel parameter {word} turns it off", f"boot without {word}")
    if host.exists(f"{TABLES}/DMAR"):
        if any(word.startswith("intel_iommu=on") for word in words):
            return Shortcoming(
                "no IOMMU: the firmware offers VT-d, but the kernel did not take it up",
                "see dmesg for DMAR: a broken firmware table, or a kernel without CONFIG_INTEL_IOMMU",
            )
        return Shortcoming(
            "no IOMMU: the firmware offers VT-d, but the kernel does not use it",
            "boot with the kernel parameter intel_iommu=on",
        )
    if host.exists(f"{TABLES}/IVRS"):
        return Shortcoming(
            "no IOMMU: the firmware offers AMD-Vi, but the kernel did not take it up",
            "see dmesg for AMD-Vi: a broken firmware table, or a kernel without CONFIG_AMD_IOMMU",
        )
    return _why_no_table(host.read("/proc/cpuinfo") or "")


def _turns_off(word: str, given: str) -> bool:
    """iommu= and intel_iommu= take several values, with commas: iommu=off,noforce."""
    name, _, value = word.partition("=")
    given_name, _, values = given.partition("=")
    return name == given_name and value in values.split(",")


def _why_no_table(cpuinfo: str) -> Shortcoming:
    if re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE):
        return Shortcoming(
            "no IOMMU: this is a virtual machine without one",
            "give it one (QEMU: -machine q35,kernel-irqchip=split -device intel-iommu,intremap=on), "
            "or use `iolane lab`",
        )
    if "GenuineIntel" in cpuinfo:
        return Shortcoming(
            "no IOMMU: the firmware does not offer VT-d",
            "enable VT-d (Virtualization Technology for Directed I/O) in the firmware's setup, "
            "then boot with intel_iommu=on",
        )
    if "AuthenticAMD" in cpuinfo or "HygonGenuine" in cpuinfo:
        return Shortcoming(
            "no IOMMU: the firmware does not offer AMD-Vi",
            "enable IOMMU (AMD-Vi, AMD I/O Virtualization) in the firmware's setup",
        )
    return Shortcoming("no IOMMU: the kernel found none", "enable it in the firmware's setup; see dmesg")


def _why_unsafe(host: Host, units: tuple[str, ...]) -> Shortcoming:
    text = "interrupt remapping is off: a guest could raise any interrupt of the host"
    words = (host.read("/proc/cmdline") or "").split()
    accept = (
        "if you trust the guest: modprobe vfio_iommu_type1 allow_unsafe_interrupts=1 "
        f"(or write 1 to {UNSAFE_INTERRUPTS})"
    )
    for word in ("intremap=off", "nointremap", "noapic", "nolapic"):
        if word in words:
            return Shortcoming(text, f"boot without {word}")
    if units[0].startswith("dmar") and not any(_ecap(host, unit) & _ECAP_IR for unit in units):
        return Shortcoming(f"{text}; this IOMMU can't remap them", accept)
    return Shortcoming(text, f"enable interrupt remapping (x2APIC) in the firmware's setup; {accept}")


def _ecap(host: Host, unit: str) -> int:
    try:
        return int(host.read(f"{UNITS}/{unit}/intel-iommu/ecap") or "", 16)
    except ValueError:
        return 0
