"""iommufd and character devices of functions (drivers/iommu/iommufd, drivers/vfio/device_cdev.c)."""

from __future__ import annotations

import ctypes
import errno
from typing import TYPE_CHECKING

from iolane.model.dma import Permission
from iolane.testing.fake_vfio.function import FakeFunction
from iolane.testing.fake_vfio.iommu import FakeDomain, fault
from iolane.uapi import iommufd as uapi
from iolane.uapi.vfio import Ioctl
from iolane.uapi.vfio_layouts import DEVICE_ATTACH_IOMMUFD_PT, DEVICE_BIND_IOMMUFD

if TYPE_CHECKING:
    from iolane.testing.fake_vfio.kernel import FakeKernel

WHOLE = ((0, (1 << 64) - 1),)


class FakeIommufd:
    """/dev/iommu."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.spaces: dict[int, FakeDomain] = {}

    def space(self, number: int) -> FakeDomain:
        found = self.spaces.get(number)
        if found is None:
            raise fault(errno.ENOENT)
        return found

    def ioctl(self, request: int, argument: bytearray | int) -> int:
        if not isinstance(argument, bytearray):
            raise fault(errno.EFAULT)
        if request == uapi.Ioctl.IOAS_ALLOC:
            number = len(self.spaces) + 1
            domain = self.spaces[number] = FakeDomain()
            domain.ranges = WHOLE
            argument[:] = uapi.IOAS_ALLOC.pack(uapi.IOAS_ALLOC.size, 0, number)
        elif request == uapi.Ioctl.IOAS_IOVA_RANGES:
            self._ranges(argument)
        elif request == uapi.Ioctl.IOAS_MAP:
            _, flags, number, _, address, size, iova = uapi.IOAS_MAP.unpack(argument)
            permission = Permission(0)
            if flags & uapi.MapFlags.READABLE:
                permission |= Permission.READ
            if flags & uapi.MapFlags.WRITEABLE:
                permission |= Permission.WRITE
            if not flags & uapi.MapFlags.FIXED_IOVA:
                raise fault(errno.EOPNOTSUPP)
            self.space(number).map(iova, size, address, permission)
        elif request == uapi.Ioctl.IOAS_UNMAP:
            _, number, iova, size = uapi.IOAS_UNMAP.unpack(argument)
            gone = self.space(number).unmap(iova, size)
            if not gone:
                raise fault(errno.ENOENT)
            argument[:] = uapi.IOAS_UNMAP.pack(uapi.IOAS_UNMAP.size, number, iova, gone)
        else:
            raise fault(errno.ENOTTY)
        return 0

    def _ranges(self, argument: bytearray) -> None:
        size, number, room, _, address, _ = uapi.IOAS_IOVA_RANGES.unpack(argument)
        ranges = self.space(number).ranges
        argument[:] = uapi.IOAS_IOVA_RANGES.pack(size, number, len(ranges), 0, address, 1)
        if len(ranges) > room:
            raise fault(errno.EMSGSIZE)
        listed = b"".join(uapi.IOVA_RANGE.pack(*pair) for pair in ranges)
        ctypes.memmove(address, listed, len(listed))

    def close(self) -> None:
        for domain in self.spaces.values():
            domain.unmap_all()


class FakeCharacterDevice:
    """/dev/vfio/devices/vfioN: nothing works before it is bound."""

    def __init__(self, kernel: FakeKernel, function: FakeFunction) -> None:
        self.kernel = kernel
        self.function = function
        self.iommufd: FakeIommufd | None = None
        self.domain: FakeDomain | None = None

    def ioctl(self, request: int, argument: bytearray | int) -> int:
        if request == Ioctl.DEVICE_BIND_IOMMUFD and isinstance(argument, bytearray):
            argsz, flags, fd, _ = DEVICE_BIND_IOMMUFD.unpack(argument)
            opened = self.kernel.files.get(fd)
            if not isinstance(opened, FakeIommufd) or flags or self.iommufd is not None:
                raise fault(errno.EINVAL)
            self.iommufd = opened
            self.function.open()
            argument[:] = DEVICE_BIND_IOMMUFD.pack(argsz, flags, fd, 1)
            return 0
        if self.iommufd is None:
            raise fault(errno.EINVAL)
        if request == Ioctl.DEVICE_ATTACH_IOMMUFD_PT and isinstance(argument, bytearray):
            _, _, number = DEVICE_ATTACH_IOMMUFD_PT.unpack(argument)
            self.domain = self.iommufd.space(number)
            self.domain.ranges = FakeDomain().ranges
            self.domain.attach(self.function)
            return 0
        return self.function.ioctl(request, argument)

    def close(self) -> None:
        self.function.close()
        if self.domain is not None:
            self.domain.detach(self.function)
