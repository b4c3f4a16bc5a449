"""A container: the IOMMU of type 1 behind /dev/vfio/vfio, shared by the groups in it."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Sequence
from dataclasses import dataclass

from iolane.carriers.vfio.address_space import SPACE, DmaAddressSpace, IovaRange
from iolane.carriers.vfio.capabilities import ask, chain
from iolane.carriers.vfio.group import Group
from iolane.carriers.vfio.ioctl import LINUX, Descriptor, Kernel, VfioError, failure
from iolane.model.dma import Permission
from iolane.uapi.vfio import (
    API_VERSION,
    DirtyPagesFlags,
    DmaMapFlags,
    DmaUnmapFlags,
    Ioctl,
    IommuCap,
    IommuInfo,
    IommuType,
)
from iolane.uapi.vfio_layouts import (
    IOMMU_TYPE1_DIRTY_BITMAP,
    IOMMU_TYPE1_DIRTY_BITMAP_GET,
    IOMMU_TYPE1_DMA_MAP,
    IOMMU_TYPE1_DMA_UNMAP,
    IOMMU_TYPE1_INFO,
    IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    IOMMU_TYPE1_INFO_CAP_MIGRATION,
    IOMMU_TYPE1_INFO_DMA_AVAIL,
    IOVA_RANGE,
)

CONTROL = "/dev/vfio/vfio"


@dataclass(frozen=True, slots=True)
class IommuInformation:
    """What the kernel says of the IOMMU of a container."""

    page_sizes: int = 4096
    ranges: tuple[IovaRange, ...] = ()
    """None can be mapped before a group is there."""
    available: int | None = None
    dirty_page_size: int = 0


def parse_information(info: bytearray) -> IommuInformation:
    """struct vfio_iommu_type1_info with its capabilities; kernels before 5.4 have none and say nothing of
    ranges.
    """
    _, flags, page_sizes, offset = IOMMU_TYPE1_INFO.unpack_from(info)
    ranges: tuple[IovaRange, ...] = (IovaRange(0, SPACE - 1),)
    available, dirty = None, 0
    for kind, at in chain(info, offset if flags & IommuInfo.CAPS else 0):
        if kind == IommuCap.CAP_IOVA_RANGE:
            count = IOMMU_TYPE1_INFO_CAP_IOVA_RANGE.unpack_from(info, at)[3]
            first = at + IOMMU_TYPE1_INFO_CAP_IOVA_RANGE.size
            listed = info[first : first + count * IOVA_RANGE.size]
            ranges = tuple(IovaRange(*pair) for pair in IOVA_RANGE.iter_unpack(listed))
        elif kind == IommuCap.CAP_MIGRATION:
            pages = IOMMU_TYPE1_INFO_CAP_MIGRATION.unpack_from(info, at)[4]
            dirty = pages & -pages
        elif kind == IommuCap.DMA_AVAIL:
            available = IOMMU_TYPE1_INFO_DMA_AVAIL.unpack_from(info, at)[3]
    known = page_sizes if flags & IommuInfo.PGSIZES and page_sizes else 4096
    return IommuInformation(known, ranges, available, dirty)


class Container(DmaAddressSpace):
    """The IOMMU of the groups that were added (VFIO_TYPE1v2_IOMMU). The first one brings it to life: before,
    nothing can be mapped.
    """

    def __init__(self, *, kernel: Kernel = LINUX) -> None:
        super().__init__("VFIO container")
        try:
            fd = kernel.open(CONTROL)
        except OSError as error:
            raise _unopened(error) from None
        self._device = Descriptor(kernel, fd, self.name)
        self._groups: dict[int, Group] = {}
        self._known = IommuInformation()
        try:
            self._check_version()
        except BaseException:
            self._device.close()
            raise

    def _check_version(self) -> None:
        version = self._device.call(Ioctl.GET_API_VERSION, 0, "the version of its interface")
        if version != API_VERSION:
            raise VfioError(f"{self.name}: the kernel's VFIO has version {version}, not {API_VERSION}")
        if not self._device.call(Ioctl.CHECK_EXTENSION, IommuType.TYPE1v2_IOMMU, "its IOMMU types"):
            raise VfioError(
                f"{self.name}: the kernel has no IOMMU of type 1 for VFIO",
                remedy="modprobe vfio_iommu_type1",
            )

    @property
    def fd(self) -> int:
        """The descriptor of /dev/vfio/vfio."""
        return self._device.fd

    # Groups.

    def add(self, group: Group) -> None:
        """Attach a group, which this container then owns.

        Raises:
            VfioError: the group is not viable, belongs to another container, or the IOMMU can't be used.
        """
        group.check_viable()
        group.set_container(self._device.fd)
        self._groups[group.number] = group
        if len(self._groups) == 1:
            try:
                self._device.kernel.ioctl(self._device.fd, Ioctl.SET_IOMMU, IommuType.TYPE1v2_IOMMU)
            except OSError as error:
                del self._groups[group.number]
                raise _no_iommu(group, error) from None
        self._known = self._info()

    def group(self, number: int) -> Group | None:
        """The group of this number, if it is in the container."""
        return self._groups.get(number)

    def group_fds(self) -> dict[int, int]:
        """Descriptors of the groups in the container by number, for a hot reset."""
        return {number: group.fd for number, group in self._groups.items()}

    def _info(self) -> IommuInformation:
        """VFIO_IOMMU_GET_INFO."""
        fixed = IOMMU_TYPE1_INFO.pack(0, 0, 0, 0)
        return parse_information(ask(self._device, Ioctl.IOMMU_GET_INFO, fixed, "what its IOMMU can do"))

    # The address space.

    @property
    def page_sizes(self) -> int:
        return self._known.page_sizes

    @property
    def ranges(self) -> Sequence[IovaRange]:
        return self._known.ranges

    @property
    def available(self) -> int | None:
        return self._info().available

    def _map(self, iova: int, address: int, size: int, permission: Permission) -> None:
        flags = int(permission) & (DmaMapFlags.READ | DmaMapFlags.WRITE)
        request = IOMMU_TYPE1_DMA_MAP.pack(IOMMU_TYPE1_DMA_MAP.size, flags, address, iova, size)
        self._device.kernel.ioctl(self._device.fd, Ioctl.IOMMU_MAP_DMA, bytearray(request))

    def _unmap(self, iova: int, size: int) -> int:
        request = bytearray(IOMMU_TYPE1_DMA_UNMAP.pack(IOMMU_TYPE1_DMA_UNMAP.size, 0, iova, size))
        self._device.kernel.ioctl(self._device.fd, Ioctl.IOMMU_UNMAP_DMA, request)
        return int(IOMMU_TYPE1_DMA_UNMAP.unpack(request)[3])

    def unmap_all(self) -> int:
        """Drop every map, in one call where the kernel has VFIO_UNMAP_ALL."""
        if not self._device.kernel.ioctl(self._device.fd, Ioctl.CHECK_EXTENSION, IommuType.UNMAP_ALL):
            return super().unmap_all()
        request = IOMMU_TYPE1_DMA_UNMAP.pack(IOMMU_TYPE1_DMA_UNMAP.size, DmaUnmapFlags.ALL, 0, 0)
        buffer = bytearray(request)
        self._device.call(Ioctl.IOMMU_UNMAP_DMA, buffer, "an unmap of everything")
        for item in list(self._table):
            self._table.remove_run(item, 1)
        return int(IOMMU_TYPE1_DMA_UNMAP.unpack(buffer)[3])

    # Dirty tracking.

    @property
    def dirty_page_size(self) -> int:
        return self._known.dirty_page_size

    def start_dirty(self) -> None:
        self._dirty(DirtyPagesFlags.START)

    def stop_dirty(self) -> None:
        self._dirty(DirtyPagesFlags.STOP)

    def _dirty(self, flag: DirtyPagesFlags) -> None:
        request = bytearray(IOMMU_TYPE1_DIRTY_BITMAP.pack(IOMMU_TYPE1_DIRTY_BITMAP.size, flag))
        self._device.call(Ioctl.IOMMU_DIRTY_PAGES, request, f"dirty tracking: {flag.name}")

    def dirty_bitmap(self, iova: int, size: int) -> bytes:
        page = self.dirty_page_size or self.page_size
        length = -(-size // page)
        bits = (ctypes.c_uint8 * (-(-length // 64) * 8))()
        argsz = IOMMU_TYPE1_DIRTY_BITMAP.size + IOMMU_TYPE1_DIRTY_BITMAP_GET.size
        request = IOMMU_TYPE1_DIRTY_BITMAP.pack(argsz, DirtyPagesFlags.GET_BITMAP)
        request += IOMMU_TYPE1_DIRTY_BITMAP_GET.pack(iova, size, page, len(bits), ctypes.addressof(bits))
        self._device.call(Ioctl.IOMMU_DIRTY_PAGES, bytearray(request), "dirty tracking: GET_BITMAP")
        return bytes(bits)[: -(-length // 8)]

    def close(self) -> None:
        """Close groups and container; the kernel drops maps and pins with the last descriptor."""
        for group in self._groups.values():
            group.close()
        self._groups.clear()
        self._device.close()


def _unopened(error: OSError) -> VfioError:
    remedy = {
        errno.ENOENT: "modprobe vfio-pci",
        errno.ENODEV: "modprobe vfio-pci",
        errno.EACCES: "run as root, or give the user access to /dev/vfio/vfio",
    }.get(error.errno or 0)
    return failure(f"{CONTROL} can't be opened", error, remedy)


def _no_iommu(group: Group, error: OSError) -> VfioError:
    if error.errno == errno.EPERM:
        return VfioError(
            f"{group.name}: the kernel gives no IOMMU to it: without interrupt remapping a function could"
            " forge interrupts",
            errno=errno.EPERM,
            remedy="enable interrupt remapping in the firmware (and the kernel); or, where every guest is"
            " trusted, vfio_iommu_type1.allow_unsafe_interrupts=1",
        )
    return failure(f"{group.name}: its container gets no IOMMU", error)
