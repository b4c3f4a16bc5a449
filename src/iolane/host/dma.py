"""What a function can reach by DMA, as far as it can be known from outside."""

from __future__ import annotations

import msgspec

from iolane.host.function import HostFunction
from iolane.host.holding import DmaMapReport, HeldBy
from iolane.host.inventory import find_function
from iolane.host.iommu import address_width, read_iommu
from iolane.host.iommu_group import IommuGroup, ReservedKind, read_group
from iolane.host.sysfs import Host
from iolane.host.users import vfio_users
from iolane.host.vfio_driver import VFIO_PCI
from iolane.model.pci.pcie_id import PcieId

_DOMAINS = {
    "identity": "identity: the IOMMU lets everything pass unchanged",
    "DMA": "DMA: the kernel maps each buffer for the time of its use (strict)",
    "DMA-FQ": "DMA-FQ: the kernel maps each buffer for its use, and may unmap some milliseconds late",
    "blocked": "blocked: the IOMMU lets nothing pass",
    "unmanaged": "unmanaged: whoever owns the domain makes its maps",
}


class AddressRange(msgspec.Struct, frozen=True):
    """IOVAs from `start` to `last`, both included."""

    start: int
    last: int


class ReservedRange(msgspec.Struct, frozen=True):
    """IOVAs that nobody may map, and why."""

    start: int
    last: int
    kind: str


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """What a function reaches, and what can't be known."""

    function: str
    driver: str | None
    iommu: str | None
    """The unit that translates for it."""
    group: int | None
    group_members: list[str]
    """The others in its group: they reach the same."""
    domain: str
    """The type of the group's default domain, with its meaning."""
    width: int | None
    """Bits of address that the IOMMU translates."""
    mask_bits: int | None
    """Bits of address that the present driver allows."""
    reserved: list[ReservedRange]
    windows: list[AddressRange] | None
    """Where maps can be; None where the width is not known."""
    holder: str | None
    """The machine or process that has it open through VFIO."""
    maps: list[DmaMapReport] | None
    """All that it reaches now; None if that can't be known, and then `now` says why."""
    now: str
    """What it reaches now, in words."""


def reach(host: Host, address: PcieId, held_by: HeldBy = lambda address: None) -> Reach:
    """What the function at `address` reaches.

    Raises:
        IolaneError: there is no such function.
    """
    function = find_function(host, address)
    group = None if function.iommu_group is None else read_group(host, function.iommu_group)
    held = held_by(address)
    users = vfio_users(host, address) if function.driver == VFIO_PCI else []
    unit = host.link(f"{function.directory}/iommu")
    width = None if unit is None else address_width(host, unit)
    maps = None if held is None else held.maps
    holder = f"{held.machine} (process {held.pid})" if held is not None else ", ".join(users) or None
    regions = () if group is None else group.reserved_regions
    return Reach(
        function=str(address),
        driver=function.driver,
        iommu=unit,
        group=function.iommu_group,
        group_members=[] if group is None else [str(each) for each in group.members if each != address],
        domain=_domain(group),
        width=width,
        mask_bits=function.dma_mask_bits,
        reserved=[ReservedRange(each.start, each.end, each.kind) for each in regions],
        windows=None if width is None else _windows(group, width),
        holder=holder,
        maps=maps,
        now=_now(host, function, group, holder, maps),
    )


def _domain(group: IommuGroup | None) -> str:
    if group is None:
        return "none: no IOMMU is between it and memory"
    if group.type is None:
        return "unknown: this kernel does not say"
    return _DOMAINS.get(group.type, group.type)


def _windows(group: IommuGroup | None, width: int) -> list[AddressRange]:
    """[0, 2^width) less the reserved regions; relaxable ones may be mapped."""
    regions = [] if group is None else sorted(group.reserved_regions, key=lambda region: region.start)
    windows, start, end = [], 0, 1 << width
    for region in regions:
        if region.kind == ReservedKind.DIRECT_RELAXABLE:
            continue
        if region.start > start:
            windows.append(AddressRange(start, min(region.start, end) - 1))
        start = max(start, region.end + 1)
    if start < end:
        windows.append(AddressRange(start, end - 1))
    return windows


def _now(
    host: Host,
    function: HostFunction,
    group: IommuGroup | None,
    holder: str | None,
    maps: list[DmaMapReport] | None,
) -> str:
    if group is None:
        missing = read_iommu(host).missing
        why = missing.text if missing is not None else "no IOMMU covers this function"
        return f"all of the host's memory, unchecked: {why}"
    if maps is not None:
        total = sum(each.size for each in maps)
        return f"{total:#x} bytes in {len(maps)} maps of {holder}, and interrupts given to it"
    if holder is not None:
        return f"what {holder} has mapped through VFIO: only that process knows it, and it does not say"
    if function.driver == VFIO_PCI:
        return "nothing: nobody has it open; whoever opens it decides what it reaches"
    if group.type == "identity":
        return "all of the host's memory: its domain is identity (iommu=pt, or a quirk of the device)"
    if function.driver is None:
        return "what is left mapped in its group's domain: nothing, unless another member uses it"
    return f"the buffers that its driver {function.driver} has mapped at this moment; which, the kernel keeps"
