"""The maps of an IOMMU domain, and the hardware behind it."""

from __future__ import annotations

import ctypes
import errno
from typing import NamedTuple

from iolane.model.dma import Permission
from iolane.testing.fake_vfio.function import FakeFunction

PAGE = 4096
DEFAULT_RANGES = ((0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 48) - 1))
"""48 bits, without the window of interrupts."""


class FakeMap(NamedTuple):
    """Memory of this process at an IOVA."""

    iova: int
    size: int
    address: int
    permission: Permission


class FakeDomain:
    """Maps, enforced for every function that is attached.

    Attributes:
        ranges: (first, last) address of what may be mapped.
        entry_limit: maps at most (vfio_iommu_type1's dma_entry_limit).
        lock_limit: bytes at most, as RLIMIT_MEMLOCK would have it; None for no limit.
    """

    def __init__(self) -> None:
        self.maps: dict[int, FakeMap] = {}
        self.functions: list[FakeFunction] = []
        self.ranges: tuple[tuple[int, int], ...] = DEFAULT_RANGES
        self.entry_limit = 65535
        self.lock_limit: int | None = None

    def attach(self, function: FakeFunction) -> None:
        self.functions.append(function)
        for item in self.maps.values():
            self._let(function, item)

    def detach(self, function: FakeFunction) -> None:
        if function in self.functions:
            self.functions.remove(function)
            function.device.dma.unmap_all()

    @staticmethod
    def _let(function: FakeFunction, item: FakeMap) -> None:
        memory = memoryview((ctypes.c_uint8 * item.size).from_address(item.address)).cast("B")
        function.device.dma.map(item.iova, item.size, buffer=memory, permission=item.permission)

    def map(self, iova: int, size: int, address: int, permission: Permission) -> None:
        """Raises OSError as VFIO_IOMMU_MAP_DMA (type 1) fails."""
        if not size or not permission or (iova | size | address) & (PAGE - 1):
            raise fault(errno.EINVAL)
        if any(item.iova < iova + size and iova < item.iova + item.size for item in self.maps.values()):
            raise fault(errno.EEXIST)
        if len(self.maps) >= self.entry_limit:
            raise fault(errno.ENOSPC)
        if not any(first <= iova and iova + size - 1 <= last for first, last in self.ranges):
            raise fault(errno.EINVAL)
        locked = sum(item.size for item in self.maps.values())
        if self.lock_limit is not None and locked + size > self.lock_limit:
            raise fault(errno.ENOMEM)
        item = self.maps[iova] = FakeMap(iova, size, address, permission)
        for function in self.functions:
            self._let(function, item)

    def unmap(self, iova: int, size: int) -> int:
        """Version 2: whole maps only. Raises OSError."""
        if not size or (iova | size) & (PAGE - 1):
            raise fault(errno.EINVAL)
        inside = [
            item for item in self.maps.values() if item.iova < iova + size and iova < item.iova + item.size
        ]
        if any(item.iova < iova or item.iova + item.size > iova + size for item in inside):
            raise fault(errno.EINVAL)
        for item in inside:
            del self.maps[item.iova]
            for function in self.functions:
                function.device.dma.unmap(item.iova, item.size)
        return sum(item.size for item in inside)

    def unmap_all(self) -> int:
        gone = sum(item.size for item in self.maps.values())
        self.maps.clear()
        for function in self.functions:
            function.device.dma.unmap_all()
        return gone


def fault(number: int) -> OSError:
    """What a system call fails with."""
    return OSError(number, errno.errorcode[number])
