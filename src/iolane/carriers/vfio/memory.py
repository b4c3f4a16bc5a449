"""Memory that a function reaches, for drivers in Python."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from iolane.carriers.vfio.address_space import DmaAddressSpace
from iolane.memory.mapping import Mapping
from iolane.model.dma import READ_WRITE, Permission


class DmaMemory:
    """`size` bytes of shared memory at an IOVA. A context manager: leaving unmaps it first.

    Args:
        space: of the function.
        iova: where the function sees it.
        size: bytes, whole pages.
        permission: what the function may do with it.

    Attributes:
        view: the bytes here; a reader that must not see a torn value casts it to the value's width.

    Raises:
        VfioError: what `DmaAddressSpace.map` refuses.
    """

    def __init__(
        self, space: DmaAddressSpace, iova: int, size: int, permission: Permission = READ_WRITE
    ) -> None:
        self.iova = iova
        self.size = size
        self._space = space
        fd = os.memfd_create("iolane-dma", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            self._mapping = Mapping(fd, size)
        finally:
            os.close(fd)
        self.view = memoryview(self._mapping).cast("B")
        self._mapped = False
        try:
            space.map(iova, self._mapping.address, size, permission)
            self._mapped = True
        except BaseException:
            self._release()
            raise

    @property
    def address(self) -> int:
        """Where the bytes are in this process."""
        return self._mapping.address

    def unmap(self) -> None:
        """The function does not reach it any more; the bytes stay. A second call does nothing."""
        if self._mapped:
            self._mapped = False
            self._space.unmap(self.iova, self.size)

    def close(self) -> None:
        """Unmap, and give the memory back once no view of it is left."""
        self.unmap()
        self._release()

    def _release(self) -> None:
        self.view.release()
        self._mapping.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
