"""The register notation on real hardware: attributes are loads from and stores to a region."""

from __future__ import annotations

from functools import cache
from typing import Protocol, TypeVar, cast

from iolane.carriers.vfio.ioctl import VfioError
from iolane.carriers.vfio.region import VfioRegion
from iolane.memory.mapping import Mapping
from iolane.model.pci.pcie_id import PcieId
from iolane.model.region import Area
from iolane.model.registers import RegisterMap

M = TypeVar("M", bound=RegisterMap)


class Hardware(Protocol):
    """What is needed of a `VfioFunction`."""

    address: PcieId

    def region(self, index: int) -> VfioRegion: ...
    def read(self, index: int, offset: int, length: int) -> bytes: ...
    def write(self, index: int, offset: int, data: bytes) -> None: ...
    def map(self, index: int, offset: int, size: int) -> Mapping: ...


class _Window:
    """A mapped area, with a view for each width of an access."""

    def __init__(self, area: Area, mapping: Mapping) -> None:
        self.start = area.offset
        self.end = area.offset + area.size
        self.mapping = mapping
        whole = memoryview(mapping).cast("B")
        self.views = {1: whole, 2: whole.cast("H"), 4: whole.cast("I"), 8: whole.cast("Q")}

    def close(self) -> None:
        for view in reversed(self.views.values()):
            view.release()
        self.mapping.close()


class LiveRegion:
    """Loads and stores of one region: by its mapping where there is one, else through the kernel."""

    def __init__(self, function: Hardware, index: int) -> None:
        self._function = function
        self._index = index
        self._windows: list[_Window] = []

    def _window(self, offset: int, width: int) -> _Window | None:
        for window in self._windows:
            if window.start <= offset and offset + width <= window.end:
                return window
        area = self._function.region(self._index).holding(offset, width)
        if area is None or area.offset % 8 or area.size % 8:
            return None
        window = _Window(area, self._function.map(self._index, area.offset, area.size))
        self._windows.append(window)
        return window

    def load(self, offset: int, width: int) -> int:
        """One load of `width` bytes (1, 2, 4, 8) at `offset`, a multiple of it.

        Raises:
            VfioError: the function does not answer.
        """
        window = self._window(offset, width)
        if window is None:
            return int.from_bytes(self._function.read(self._index, offset, width), "little")
        value: int = window.views[width][(offset - window.start) // width]
        self._check(window)
        return value

    def store(self, offset: int, width: int, value: int) -> None:
        """One store. Raises `VfioError` as `load` does."""
        window = self._window(offset, width)
        if window is None:
            self._function.write(self._index, offset, value.to_bytes(width, "little"))
            return
        window.views[width][(offset - window.start) // width] = value
        self._check(window)

    def _check(self, window: _Window) -> None:
        if not window.mapping.broken:
            return
        self._windows.remove(window)
        window.close()
        raise VfioError(
            f"{self._function.address} does not answer: memory decoding is off, it sleeps (D3), or is gone",
            remedy="set COMMAND.MEMORY (`set_command`) and power state D0",
        )

    def close(self) -> None:
        """Unmap; the next access maps again."""
        for window in self._windows:
            window.close()
        self._windows.clear()


class LiveRegisters(RegisterMap):
    """A register map whose storage is the hardware: each attribute is an access of the register's width."""

    live: LiveRegion
    start: int

    def load(self, offset: int, width: int) -> int:
        return self.live.load(self.start + offset, width)

    def store(self, offset: int, width: int, value: int) -> None:
        self.live.store(self.start + offset, width, value)

    def read(self, offset: int, size: int) -> int:
        return self.live.load(self.start + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.live.store(self.start + offset, size, value)


@cache
def _live_class(registers: type[RegisterMap]) -> type[LiveRegisters]:
    kind = type(registers.__name__, (LiveRegisters, registers), {"__doc__": registers.__doc__})
    return cast(type[LiveRegisters], kind)


def live_registers(registers: type[M], live: LiveRegion, start: int) -> M:
    """An instance of `registers` whose offset 0 is byte `start` of the region."""
    made = _live_class(registers)()  # type: ignore[arg-type]  # mypy: a type variable is not Hashable
    made.live, made.start = live, start
    return cast(M, made)
