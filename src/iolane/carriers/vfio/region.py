"""A region of a function as VFIO gives it."""

from __future__ import annotations

from dataclasses import dataclass

from iolane.carriers.vfio.capabilities import ask, chain
from iolane.carriers.vfio.ioctl import Descriptor
from iolane.model.region import Area
from iolane.uapi.vfio import Ioctl, RegionCap, RegionFlags
from iolane.uapi.vfio_layouts import (
    REGION_INFO,
    REGION_INFO_CAP_SPARSE_MMAP,
    REGION_SPARSE_MMAP_AREA,
)


@dataclass(frozen=True, slots=True)
class VfioRegion:
    """Region `index`: `size` bytes of the device's descriptor from `offset` on."""

    index: int
    size: int
    offset: int
    flags: RegionFlags
    mmap_areas: tuple[Area, ...]
    """The whole region, or the areas of its sparse mmap capability."""
    msix_mappable: bool
    """The MSI-X table may lie in what is mapped; vectors are set by VFIO_DEVICE_SET_IRQS all the same."""

    @property
    def readable(self) -> bool:
        return bool(self.flags & RegionFlags.READ)

    @property
    def writable(self) -> bool:
        return bool(self.flags & RegionFlags.WRITE)

    @property
    def mappable(self) -> bool:
        """Some of it may be mapped."""
        return bool(self.mmap_areas)

    def holding(self, offset: int, size: int) -> Area | None:
        """The mappable area that holds `size` bytes at `offset`."""
        for area in self.mmap_areas:
            if area.offset <= offset and offset + size <= area.offset + area.size:
                return area
        return None


def region_of(device: Descriptor, index: int) -> VfioRegion | None:
    """VFIO_DEVICE_GET_REGION_INFO; None where there is no such region."""
    request = REGION_INFO.pack(0, 0, index, 0, 0, 0)
    info = ask(device, Ioctl.DEVICE_GET_REGION_INFO, request, f"region {index}")
    _, flags, _, cap_offset, size, offset = REGION_INFO.unpack_from(info)
    if not size:
        return None
    areas: tuple[Area, ...] = (Area(0, size),) if flags & RegionFlags.MMAP else ()
    msix_mappable = False
    for kind, at in chain(info, cap_offset if flags & RegionFlags.CAPS else 0):
        if kind == RegionCap.SPARSE_MMAP and flags & RegionFlags.MMAP:
            count = REGION_INFO_CAP_SPARSE_MMAP.unpack_from(info, at)[3]
            first = at + REGION_INFO_CAP_SPARSE_MMAP.size
            listed = info[first : first + count * REGION_SPARSE_MMAP_AREA.size]
            areas = tuple(Area(*area) for area in REGION_SPARSE_MMAP_AREA.iter_unpack(listed))
        elif kind == RegionCap.MSIX_MAPPABLE:
            msix_mappable = True
    return VfioRegion(index, size, offset, RegionFlags(flags), areas, msix_mappable)
