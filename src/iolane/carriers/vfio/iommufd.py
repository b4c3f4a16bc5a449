"""An I/O address space of iommufd, and functions opened by their character device (Linux 6.6 and later).

Unverified: tested against a fake kernel only, no kernel that iolane is tested with has CONFIG_IOMMUFD.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Sequence

from iolane.carriers.vfio.address_space import DmaAddressSpace, IovaRange
from iolane.carriers.vfio.ioctl import LINUX, Descriptor, Kernel, failure
from iolane.model.dma import Permission
from iolane.uapi import iommufd as uapi
from iolane.uapi.vfio import Ioctl as VfioIoctl
from iolane.uapi.vfio_layouts import DEVICE_ATTACH_IOMMUFD_PT, DEVICE_BIND_IOMMUFD

CONTROL = "/dev/iommu"
RANGES_LIMIT = 4096


class IoAddressSpace(DmaAddressSpace):
    """An IOAS (I/O address space). Functions are attached one by one; groups play no part here."""

    def __init__(self, *, kernel: Kernel = LINUX) -> None:
        super().__init__("iommufd")
        try:
            fd = kernel.open(CONTROL)
        except OSError as error:
            raise failure(
                f"{CONTROL} can't be opened", error, "the kernel needs CONFIG_IOMMUFD: modprobe iommufd"
            ) from None
        self._device = Descriptor(kernel, fd, self.name)
        self._ranges: tuple[IovaRange, ...] = ()
        self._alignment = 4096
        try:
            request = bytearray(uapi.IOAS_ALLOC.pack(uapi.IOAS_ALLOC.size, 0, 0))
            self._device.call(uapi.Ioctl.IOAS_ALLOC, request, "an I/O address space")
            self._id = int(uapi.IOAS_ALLOC.unpack(request)[2])
            self._learn()
        except BaseException:
            self._device.close()
            raise

    def attach(self, device: Descriptor) -> None:
        """Bind a function's character device to this iommufd, and attach it to the address space.

        Raises:
            VfioError: another process has it, or the IOMMU can't be used.
        """
        bind = bytearray(DEVICE_BIND_IOMMUFD.pack(DEVICE_BIND_IOMMUFD.size, 0, self._device.fd, 0))
        device.call(VfioIoctl.DEVICE_BIND_IOMMUFD, bind, "binding it to the iommufd")
        attach = bytearray(DEVICE_ATTACH_IOMMUFD_PT.pack(DEVICE_ATTACH_IOMMUFD_PT.size, 0, self._id))
        remedy = "every function of its IOMMU group must belong to this process, or to no driver"
        device.call(VfioIoctl.DEVICE_ATTACH_IOMMUFD_PT, attach, "attaching it to its address space", remedy)
        self._learn()

    def _learn(self) -> None:
        """IOMMU_IOAS_IOVA_RANGES: what may be mapped; each function that is attached narrows it."""
        count = 16
        while True:
            room = (ctypes.c_uint64 * (2 * count))()
            request = bytearray(
                uapi.IOAS_IOVA_RANGES.pack(
                    uapi.IOAS_IOVA_RANGES.size, self._id, count, 0, ctypes.addressof(room), 0
                )
            )
            try:
                self._device.kernel.ioctl(self._device.fd, uapi.Ioctl.IOAS_IOVA_RANGES, request)
            except OSError as error:
                needed = int(uapi.IOAS_IOVA_RANGES.unpack(request)[2])
                if error.errno != errno.EMSGSIZE or not count < needed <= RANGES_LIMIT:
                    raise failure(f"{self.name}: the ranges that may be mapped", error) from None
                count = needed
                continue
            break
        _, _, found, _, _, alignment = uapi.IOAS_IOVA_RANGES.unpack(request)
        pairs = list(uapi.IOVA_RANGE.iter_unpack(bytes(room)))[:found]
        self._ranges = tuple(IovaRange(*pair) for pair in pairs)
        # An alignment below a page is about what lies inside pages; memory is pinned in whole ones.
        self._alignment = max(alignment, 4096)

    @property
    def page_sizes(self) -> int:
        return self._alignment

    @property
    def ranges(self) -> Sequence[IovaRange]:
        return self._ranges

    @property
    def available(self) -> int | None:
        return None

    def _map(self, iova: int, address: int, size: int, permission: Permission) -> None:
        flags = uapi.MapFlags.FIXED_IOVA
        if permission & Permission.READ:
            flags |= uapi.MapFlags.READABLE
        if permission & Permission.WRITE:
            flags |= uapi.MapFlags.WRITEABLE
        request = uapi.IOAS_MAP.pack(uapi.IOAS_MAP.size, flags, self._id, 0, address, size, iova)
        self._device.kernel.ioctl(self._device.fd, uapi.Ioctl.IOAS_MAP, bytearray(request))

    def _unmap(self, iova: int, size: int) -> int:
        request = bytearray(uapi.IOAS_UNMAP.pack(uapi.IOAS_UNMAP.size, self._id, iova, size))
        self._device.kernel.ioctl(self._device.fd, uapi.Ioctl.IOAS_UNMAP, request)
        return int(uapi.IOAS_UNMAP.unpack(request)[3])

    def close(self) -> None:
        """Close the iommufd; functions must be closed first."""
        self._device.close()


def open_character_device(path: str, name: str, *, kernel: Kernel = LINUX) -> Descriptor:
    """Open /dev/vfio/devices/vfioN. Nothing works on it before it is attached. Raises `VfioError`."""
    try:
        return Descriptor(kernel, kernel.open(path), name)
    except OSError as error:
        raise failure(f"{name}: {path} can't be opened", error) from None
