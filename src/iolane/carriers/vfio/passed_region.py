"""A BAR of hardware as it is served: a part that the guest maps, and the rest by trapped accesses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from iolane.carriers.vfio.function import VfioFunction
from iolane.carriers.vfio.ioctl import VfioError
from iolane.carriers.vfio.live_registers import LiveRegion
from iolane.carriers.vfio.region import VfioRegion
from iolane.memory.mapping import MappingError
from iolane.model.region import Area, Piece, Region, RegionIndex
from iolane.model.registers import RegisterMap
from iolane.model.trace.names import NameFilter

PAGE = 4096


class PassedRegion(Region):
    """A BAR of a function. A trapped access becomes one of the same size on the hardware; where nothing
    answers, reads give all ones (PCI Express Base 6.0, 2.3.2) and writes are lost.

    Args:
        function: the hardware.
        region: what VFIO says of it.
        name: `bar0`.
        registers: names registers for traces; it holds no values.
        trap: areas that the guest must not map.
        kernel_only: areas that only the kernel may touch for us: the MSI-X table.
        io: an I/O BAR.
    """

    def __init__(
        self,
        function: VfioFunction,
        region: VfioRegion,
        *,
        name: str,
        registers: RegisterMap | None = None,
        trap: Iterable[Area] = (),
        kernel_only: Sequence[Area] = (),
        io: bool = False,
    ) -> None:
        pieces = []
        if registers is not None and registers.layout.size:
            pieces.append(Piece(0, registers.layout.size, registers, name))
        super().__init__(RegionIndex(region.index), region.size, pieces, name=name, io=io)
        self._function = function
        self._live = LiveRegion(function, region.index)
        self._kernel_only = tuple(kernel_only)
        self.unanswered = 0
        """Accesses that the function did not answer."""
        self.mappable = direct_areas(region, [*trap, *kernel_only])
        if self.mappable:
            self.fd, self.fd_offset = function.fd, region.offset
        self.read, self.write = self._load, self._store

    def _by_kernel(self, offset: int, size: int) -> bool:
        return bool(offset % size) or any(
            area.offset < offset + size and offset < area.offset + area.size for area in self._kernel_only
        )

    def _load(self, offset: int, size: int) -> int:
        try:
            if self._by_kernel(offset, size):
                return int.from_bytes(self._function.read(self.index, offset, size), "little")
            return self._live.load(offset, size)
        except (VfioError, MappingError):
            self.unanswered += 1
            return (1 << 8 * size) - 1

    def _store(self, offset: int, size: int, value: int) -> None:
        try:
            if self._by_kernel(offset, size):
                self._function.write(self.index, offset, value.to_bytes(size, "little"))
            else:
                self._live.store(offset, size, value)
        except (VfioError, MappingError):
            self.unanswered += 1

    def forget_mapping(self) -> None:
        """Map anew at the next access."""
        self._live.close()

    def close(self) -> None:
        """Unmap. The descriptor is the function's."""
        self._live.close()
        self.fd = -1


def trapped_areas(registers: type[RegisterMap], name: str, trap: str | None) -> list[Area]:
    """Where registers are whose names `trap` lets through (globs as for traces; None: none of them)."""
    if trap is None:
        return []
    wants = NameFilter(trap)
    return [
        Area(spec.element_offset(element), spec.width)
        for spec in registers.layout.registers
        for element in range(spec.count)
        if wants(f"{name}.{spec.element_name(element)}")
    ]


def direct_areas(region: VfioRegion, trap: Iterable[Area]) -> tuple[Area, ...]:
    """What may be mapped: VFIO's areas without every page that `trap` touches."""
    pages: set[int] = set()
    for area in trap:
        pages.update(range(area.offset // PAGE, -(-(area.offset + area.size) // PAGE)))
    found: list[Area] = []
    for area in region.mmap_areas:
        start, end = area.offset, area.offset + area.size
        for page in sorted(pages):
            first, after = page * PAGE, (page + 1) * PAGE
            if after <= start or first >= end:
                continue
            if first > start:
                found.append(Area(start, first - start))
            start = after
        if start < end:
            found.append(Area(start, end - start))
    return tuple(found)
