"""IOMMU groups: the functions that the IOMMU can't tell apart, or that reach one another without it.

VFIO gives a group to one user at a time, whole (Documentation/driver-api/vfio.rst).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from iolane.errors import IolaneError
from iolane.host.sysfs import Host
from iolane.model.pci.pcie_id import PcieId

GROUPS = "/sys/kernel/iommu_groups"


class ReservedKind(StrEnum):
    """Types in a group's `reserved_regions` (Documentation/ABI/testing/sysfs-kernel-iommu_groups)."""

    DIRECT = "direct"
    """Must stay mapped one to one: firmware uses it behind the kernel's back (VT-d: RMRR; AMD-Vi: IVMD)."""
    DIRECT_RELAXABLE = "direct-relaxable"
    """Like `direct`, but only needed until a driver takes over (graphics, USB)."""
    RESERVED = "reserved"
    """Must not be mapped."""
    MSI = "msi"
    """Where interrupts are written to."""


@dataclass(frozen=True)
class ReservedRegion:
    """IOVAs from `start` to `end`, both included."""

    start: int
    end: int
    kind: str
    """A `ReservedKind`, or a word of a newer kernel."""


@dataclass(frozen=True)
class IommuGroup:
    """One group as it is now."""

    number: int
    type: str | None
    """The type of its default domain: DMA, DMA-FQ, identity, blocked, unmanaged; None before Linux 5.11."""
    reserved_regions: tuple[ReservedRegion, ...]
    members: tuple[PcieId, ...]
    """Its PCI functions, sorted, bridges included."""
    others: tuple[str, ...] = ()
    """Members that are no PCI functions."""


def read_group(host: Host, number: int) -> IommuGroup | None:
    """The group `number`, or None if there is none."""
    folder = f"{GROUPS}/{number}"
    names = host.names(f"{folder}/devices")
    if not names and not host.exists(folder):
        return None
    members, others = [], []
    for name in names:
        try:
            members.append(PcieId.from_string(name))
        except IolaneError:
            others.append(name)
    return IommuGroup(
        number=number,
        type=host.read(f"{folder}/type"),
        reserved_regions=_regions(host.read(f"{folder}/reserved_regions") or ""),
        members=tuple(sorted(members)),
        others=tuple(others),
    )


def groups(host: Host) -> list[IommuGroup]:
    """All groups, by number; none without an IOMMU."""
    numbers = sorted(int(name) for name in host.names(GROUPS) if name.isdecimal())
    return [group for number in numbers if (group := read_group(host, number)) is not None]


def _regions(text: str) -> tuple[ReservedRegion, ...]:
    regions = []
    for line in text.splitlines():
        words = line.split()
        try:
            regions.append(ReservedRegion(int(words[0], 16), int(words[1], 16), words[2]))
        except (ValueError, IndexError):
            continue
    return tuple(regions)
