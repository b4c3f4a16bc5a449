"""The addresses that a function reaches by DMA: what every back end of the IOMMU offers."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

from iolane.carriers.vfio.ioctl import VfioError
from iolane.carriers.vfio.locked_memory import locked_memory, make_room
from iolane.model.dma import Permission
from iolane.model.dma.table import DmaMap, MapTable

SPACE = 1 << 64


class IovaRange(NamedTuple):
    """Addresses that may be mapped, `last` included."""

    start: int
    last: int

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.last:#x}"


class DmaAddressSpace(ABC):
    """IOVA -> memory of this process, enforced by the IOMMU, for every function that is attached.

    What the kernel would refuse is refused here with the reason. Memory that is mapped is pinned: it must not
    be swapped for other pages (balloon, discard) while it is.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._table = MapTable()

    # What a back end supplies.

    @property
    @abstractmethod
    def page_sizes(self) -> int:
        """A bit for each page size that the IOMMU knows; maps are multiples of the smallest."""

    @property
    @abstractmethod
    def ranges(self) -> Sequence[IovaRange]:
        """Addresses that may be mapped now. Reserved windows (0xfee00000, where a write is an interrupt) are
        holes between them. A function that is attached later may make them fewer.
        """

    @property
    @abstractmethod
    def available(self) -> int | None:
        """Maps that may still be made; None where the kernel does not say."""

    @property
    def dirty_page_size(self) -> int:
        """The page size of dirty tracking, 0 where there is none."""
        return 0

    def start_dirty(self) -> None:
        """Remember the pages that functions write, or may have written."""
        raise VfioError(f"{self.name} has no dirty tracking", errno=errno.EOPNOTSUPP)

    def stop_dirty(self) -> None:
        """Undo `start_dirty`."""
        raise VfioError(f"{self.name} has no dirty tracking", errno=errno.EOPNOTSUPP)

    def dirty_bitmap(self, iova: int, size: int) -> bytes:
        """One bit for each page of `dirty_page_size`, cleared in passing; the first in the lowest bit."""
        raise VfioError(f"{self.name} has no dirty tracking", errno=errno.EOPNOTSUPP)

    @abstractmethod
    def _map(self, iova: int, address: int, size: int, permission: Permission) -> None:
        """Ask the kernel. Raises OSError."""

    @abstractmethod
    def _unmap(self, iova: int, size: int) -> int:
        """Ask the kernel; bytes unmapped. Raises OSError."""

    @abstractmethod
    def close(self) -> None:
        """Give it back; the kernel drops the maps with it."""

    # What others call.

    @property
    def page_size(self) -> int:
        """The smallest page size."""
        return self.page_sizes & -self.page_sizes

    @property
    def maps(self) -> list[tuple[int, int, Permission]]:
        """(iova, size, permission) of every map, in order."""
        return [(item.start, item.end - item.start, item.permission) for item in self._table]

    def map(self, iova: int, address: int, size: int, permission: Permission) -> None:
        """Let functions reach `size` bytes at `iova`; they are this process's memory at `address`, which must
        stay where it is until `unmap`.

        Raises:
            VfioError: the range is empty, unaligned, reserved, mapped already (errno EEXIST), not to be
                locked (ENOMEM), or one map too many (ENOSPC).
        """
        what = f"{self.name}: a DMA map of {iova:#x} + {size:#x}"
        self._check(what, iova, address, size, permission)
        item = DmaMap(iova, iova + size, permission)
        other = self._table.add(item)
        if other is not None:
            raise VfioError(f"{what} overlaps the map of {other}", errno=errno.EEXIST)
        try:
            make_room(size)
            self._map(iova, address, size, permission)
        except OSError as error:
            self._table.remove_run(item, 1)
            raise self._explain(what, error, size) from None

    def _check(self, what: str, iova: int, address: int, size: int, permission: Permission) -> None:
        if not permission & (Permission.READ | Permission.WRITE):
            raise VfioError(f"{what} permits nothing", errno=errno.EINVAL)
        if size <= 0 or iova < 0 or iova + size > SPACE:
            raise VfioError(f"{what} is empty, or leaves 64 bits", errno=errno.EINVAL)
        page = self.page_size
        if (iova | address | size) & (page - 1):
            raise VfioError(
                f"{what} at address {address:#x} is not made of whole pages of {page} bytes",
                errno=errno.EINVAL,
            )
        if not any(item.start <= iova and iova + size - 1 <= item.last for item in self.ranges):
            allowed = ", ".join(str(item) for item in self.ranges)
            raise VfioError(
                f"{what} lies in a reserved window, or beyond what the IOMMU can address",
                errno=errno.EINVAL,
                remedy=f"addresses that may be mapped: {allowed}",
            )

    def _explain(self, what: str, error: OSError, size: int) -> VfioError:
        number = error.errno or errno.EIO
        if number == errno.ENOSPC:
            return VfioError(
                f"{what} is one too many: the kernel takes no more maps",
                errno=number,
                remedy="map larger pieces, or raise vfio_iommu_type1's parameter dma_entry_limit",
            )
        if number == errno.ENOMEM:
            memory = locked_memory()
            return VfioError(f"{what}: {memory.explain(size)}", errno=number, remedy=memory.remedy(size))
        if number == errno.EFAULT:
            return VfioError(
                f"{what}: its memory can't be pinned",
                errno=number,
                remedy="is the memory mapped, and writable where the device may write?",
            )
        if number == errno.EEXIST:
            return VfioError(f"{what} overlaps another map of the IOMMU", errno=number)
        return VfioError(f"{what}: {error.strerror}", errno=number)

    def unmap(self, iova: int, size: int) -> int:
        """Drop every map inside the range. Returns the bytes dropped, maybe 0.

        Raises:
            VfioError: a map lies across the edge of the range; nothing is dropped.
        """
        what = f"{self.name}: a DMA unmap of {iova:#x} + {size:#x}"
        if size <= 0 or iova < 0 or iova + size > SPACE:
            raise VfioError(f"{what} is empty, or leaves 64 bits", errno=errno.EINVAL)
        dropped = self._table.overlapping(iova, iova + size)
        for item in dropped:
            if item.start < iova or item.end > iova + size:
                raise VfioError(f"{what} would split the map of {item}", errno=errno.EINVAL)
        gone = 0
        for item in dropped:
            try:
                gone += self._unmap(item.start, item.end - item.start)
            except OSError as error:
                raise VfioError(f"{what}: {error.strerror}", errno=error.errno or errno.EIO) from None
            self._table.remove_run(item, 1)
        return gone

    def unmap_all(self) -> int:
        """Drop every map. Returns the bytes dropped."""
        return self.unmap(0, SPACE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
