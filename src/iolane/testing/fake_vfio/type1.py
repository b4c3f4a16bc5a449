"""Containers of type 1, groups, and the functions that groups give (drivers/vfio/*.c, Linux 6.1)."""

from __future__ import annotations

import ctypes
import errno
from struct import Struct
from typing import TYPE_CHECKING

from iolane.model.dma import Permission
from iolane.model.pci import PcieId
from iolane.testing.fake_vfio.function import FakeFunction
from iolane.testing.fake_vfio.iommu import PAGE, FakeDomain, fault
from iolane.uapi.vfio import (
    API_VERSION,
    DirtyPagesFlags,
    DmaMapFlags,
    DmaUnmapFlags,
    GroupFlags,
    Ioctl,
    IommuCap,
    IommuInfo,
    IommuType,
)
from iolane.uapi.vfio_layouts import (
    GROUP_STATUS,
    IOMMU_TYPE1_DIRTY_BITMAP,
    IOMMU_TYPE1_DIRTY_BITMAP_GET,
    IOMMU_TYPE1_DMA_MAP,
    IOMMU_TYPE1_DMA_UNMAP,
    IOMMU_TYPE1_INFO,
    IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    IOMMU_TYPE1_INFO_CAP_MIGRATION,
    IOMMU_TYPE1_INFO_DMA_AVAIL,
    IOVA_RANGE,
    PCI_HOT_RESET,
)

if TYPE_CHECKING:
    from iolane.testing.fake_vfio.kernel import FakeKernel

PAGE_SIZES = PAGE | 1 << 21 | 1 << 30


class FakeContainer:
    """/dev/vfio/vfio. Without a group it has no IOMMU, and without that it does nothing."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.groups: list[FakeGroup] = []
        self.domain: FakeDomain | None = None
        self.tracks = False

    def ioctl(self, request: int, argument: bytearray | int) -> int:
        if request == Ioctl.GET_API_VERSION:
            return API_VERSION
        if request == Ioctl.CHECK_EXTENSION:
            known = {IommuType.TYPE1_IOMMU, IommuType.TYPE1v2_IOMMU}
            return int(argument in known or (argument == IommuType.UNMAP_ALL and self.kernel.unmap_all))
        if request == Ioctl.SET_IOMMU:
            return self._set_iommu(argument)
        if self.domain is None:
            raise fault(errno.EINVAL)
        if not isinstance(argument, bytearray):
            raise fault(errno.EFAULT)
        if request == Ioctl.IOMMU_GET_INFO:
            return self._info(self.domain, argument)
        if request == Ioctl.IOMMU_MAP_DMA:
            return self._map(self.domain, argument)
        if request == Ioctl.IOMMU_UNMAP_DMA:
            return self._unmap(self.domain, argument)
        if request == Ioctl.IOMMU_DIRTY_PAGES:
            return self._dirty(argument)
        raise fault(errno.ENOTTY)

    def _set_iommu(self, kind: bytearray | int) -> int:
        if not self.groups or self.domain is not None:
            raise fault(errno.EINVAL)
        if kind not in (IommuType.TYPE1_IOMMU, IommuType.TYPE1v2_IOMMU):
            raise fault(errno.ENODEV)
        if not self.kernel.interrupt_remapping:
            raise fault(errno.EPERM)
        self.domain = FakeDomain()
        return 0

    def _info(self, domain: FakeDomain, argument: bytearray) -> int:
        argsz = int.from_bytes(argument[:4], "little")
        ranges = b"".join(IOVA_RANGE.pack(*pair) for pair in domain.ranges)
        at = IOMMU_TYPE1_INFO.size
        after = at + IOMMU_TYPE1_INFO_CAP_IOVA_RANGE.size + len(ranges)
        caps = IOMMU_TYPE1_INFO_CAP_IOVA_RANGE.pack(IommuCap.CAP_IOVA_RANGE, 1, after, len(domain.ranges), 0)
        caps += ranges
        last = after + IOMMU_TYPE1_INFO_CAP_MIGRATION.size
        caps += IOMMU_TYPE1_INFO_CAP_MIGRATION.pack(IommuCap.CAP_MIGRATION, 1, last, 0, PAGE, 1 << 28)
        free = domain.entry_limit - len(domain.maps)
        caps += IOMMU_TYPE1_INFO_DMA_AVAIL.pack(IommuCap.DMA_AVAIL, 1, 0, free)
        needed = at + len(caps)
        room = argsz >= needed
        flags = IommuInfo.PGSIZES | IommuInfo.CAPS
        argument[:at] = IOMMU_TYPE1_INFO.pack(argsz if room else needed, flags, PAGE_SIZES, at if room else 0)
        if room:
            argument[at:needed] = caps
        return 0

    def _map(self, domain: FakeDomain, argument: bytearray) -> int:
        argsz, flags, address, iova, size = IOMMU_TYPE1_DMA_MAP.unpack(argument)
        if argsz < IOMMU_TYPE1_DMA_MAP.size or flags & ~(DmaMapFlags.READ | DmaMapFlags.WRITE):
            raise fault(errno.EINVAL)
        domain.map(iova, size, address, Permission(flags))
        return 0

    def _unmap(self, domain: FakeDomain, argument: bytearray) -> int:
        argsz, flags, iova, size = IOMMU_TYPE1_DMA_UNMAP.unpack(argument)
        if flags == DmaUnmapFlags.ALL:
            if iova or size:
                raise fault(errno.EINVAL)
            gone = domain.unmap_all()
        elif flags:
            raise fault(errno.EINVAL)
        else:
            gone = domain.unmap(iova, size)
        argument[:] = IOMMU_TYPE1_DMA_UNMAP.pack(argsz, flags, iova, gone)
        return 0

    def _dirty(self, argument: bytearray) -> int:
        _, flags = IOMMU_TYPE1_DIRTY_BITMAP.unpack_from(argument)
        if flags in (DirtyPagesFlags.START, DirtyPagesFlags.STOP):
            self.tracks = flags == DirtyPagesFlags.START
            return 0
        if flags != DirtyPagesFlags.GET_BITMAP or not self.tracks:
            raise fault(errno.EINVAL)
        _, size, page, length, address = IOMMU_TYPE1_DIRTY_BITMAP_GET.unpack_from(
            argument, IOMMU_TYPE1_DIRTY_BITMAP.size
        )
        # Type 1 can't see what is written: every page that is mapped counts as written.
        bits = ((1 << size // page) - 1).to_bytes(length, "little")
        ctypes.memmove(address, bits, length)
        return 0

    def close(self) -> None:
        if self.domain is not None:
            self.domain.unmap_all()


class FakeGroup:
    """/dev/vfio/N."""

    def __init__(self, kernel: FakeKernel, number: int) -> None:
        self.kernel = kernel
        self.number = number
        self.container: FakeContainer | None = None

    def ioctl(self, request: int, argument: bytearray | int) -> int:
        if not isinstance(argument, bytearray):
            raise fault(errno.EFAULT)
        viable = self.number not in self.kernel.unviable
        if request == Ioctl.GROUP_GET_STATUS:
            flags = GroupFlags.VIABLE if viable else GroupFlags(0)
            if self.container is not None:
                flags |= GroupFlags.CONTAINER_SET
            argument[:] = GROUP_STATUS.pack(GROUP_STATUS.size, flags)
            return 0
        if request == Ioctl.GROUP_SET_CONTAINER:
            return self._set_container(int.from_bytes(argument, "little"), viable=viable)
        if request == Ioctl.GROUP_GET_DEVICE_FD:
            return self._device(argument.rstrip(b"\0").decode(), viable=viable)
        raise fault(errno.ENOTTY)

    def _set_container(self, fd: int, *, viable: bool) -> int:
        container = self.kernel.files.get(fd)
        if not isinstance(container, FakeContainer):
            raise fault(errno.EINVAL)
        if self.container is not None:
            raise fault(errno.EINVAL)
        if not viable:
            raise fault(errno.EPERM)
        container.groups.append(self)
        self.container = container
        return 0

    def _device(self, name: str, *, viable: bool) -> int:
        if self.container is None or self.container.domain is None or not viable:
            raise fault(errno.EINVAL)
        function = self.kernel.functions.get(PcieId.from_string(name))
        if function is None or function.group != self.number:
            raise fault(errno.ENODEV)
        return self.kernel.open_device(function, self.container)

    def close(self) -> None:
        if self.container is not None:
            self.container.groups.remove(self)


class FakeDevice:
    """The descriptor of a function."""

    def __init__(self, kernel: FakeKernel, function: FakeFunction, container: FakeContainer) -> None:
        self.kernel = kernel
        self.function = function
        self.domain = container.domain
        function.open()
        if self.domain is not None:
            self.domain.attach(function)

    def ioctl(self, request: int, argument: bytearray | int) -> int:
        if request == Ioctl.DEVICE_PCI_HOT_RESET and isinstance(argument, bytearray):
            return self._hot_reset(argument)
        return self.function.ioctl(request, argument)

    def _hot_reset(self, argument: bytearray) -> int:
        """Every group on the bus must be among those that are shown."""
        _, _, count = PCI_HOT_RESET.unpack_from(argument)
        fds = Struct(f"={count}i").unpack_from(argument, PCI_HOT_RESET.size)
        groups = (self.kernel.files.get(fd) for fd in fds)
        ours = {item.number for item in groups if isinstance(item, FakeGroup)}
        affected = [(self.function.group, self.function.address), *self.function.siblings]
        if any(group not in ours for group, _ in affected):
            raise fault(errno.EINVAL)
        for _, address in affected:
            function = self.kernel.functions.get(address)
            if function is not None:
                function.do_reset()
        return 0

    def close(self) -> None:
        self.function.close()
        if self.domain is not None:
            self.domain.detach(self.function)
