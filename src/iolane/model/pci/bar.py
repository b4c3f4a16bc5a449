"""Base address registers: which bytes of a device the guest reaches by memory or I/O accesses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Generic, NamedTuple, Self, TypeVar, overload

from iolane.model.pci.owner import Owner
from iolane.model.registers import Declaration, Register, RegisterArraySpec, RegisterMap, RegisterSpec

M = TypeVar("M", bound=RegisterMap)
R = TypeVar("R", bound=Register)
D = TypeVar("D", bound=Owner)

HOOKS_ATTRIBUTE = "__iolane_hooks__"


class BarKind(Enum):
    """What kind of accesses reach the BAR (PCI Express Base 6.0, 7.5.1.2.1)."""

    MEM32 = "32-bit memory"
    MEM64 = "64-bit memory"
    IO = "I/O"


class MemoryPart(NamedTuple):
    """A part of a BAR that is plain memory, which the guest may map. Whole pages, in bytes."""

    offset: int
    size: int


class Hook(NamedTuple):
    """A device method that runs at a register's accesses."""

    bar: Any
    """The `Bar`; typed loosely, since a `Bar` in a class is a descriptor."""
    spec: Declaration[Any]
    writes: bool


class Bar(Generic[M]):
    """A BAR of a device class, named `bar0` to `bar5`. On a device the attribute is its `RegisterMap`.

    Args:
        registers: the registers, from `at` on. `RegisterMap` itself for none.
        at: offset of the registers in the BAR.
        size: a power of two; by default the smallest that holds everything (at least a page of memory).
        kind: memory or I/O. A `MEM64` BAR takes the next index, too.
        prefetchable: reads have no side effects.
        memory: parts that are plain memory.
    """

    def __init__(
        self,
        registers: type[M],
        *,
        at: int = 0,
        size: int | None = None,
        kind: BarKind = BarKind.MEM32,
        prefetchable: bool = False,
        memory: Sequence[MemoryPart] = (),
    ) -> None:
        if any(part.offset % 4096 or part.size % 4096 or part.size <= 0 for part in memory):
            raise TypeError("a plain-memory part of a BAR consists of whole pages of 4096 bytes")
        if kind is BarKind.IO and (memory or prefetchable):
            raise TypeError("an I/O BAR is neither prefetchable nor plain memory")
        self.registers = registers
        self.at = at
        self.kind = kind
        self.prefetchable = prefetchable
        self.memory = tuple(memory)
        self.name = ""
        self.index = -1
        self._size = size

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        if len(name) == 4 and name.startswith("bar") and name[3] in "012345":
            self.index = int(name[3])

    def check_name(self, owner: type) -> None:
        """Raise `TypeError` for a BAR that no register of the header can stand for."""
        if self.index < 0:
            raise TypeError(f"{owner.__name__}.{self.name}: name a BAR bar0 to bar5")
        if self.kind is BarKind.MEM64 and self.index == 5:
            raise TypeError(f"{owner.__name__}.{self.name}: a 64-bit BAR takes two indexes, bar5 has no next")

    def size_for(self, further: int) -> int:
        """Bytes of the BAR when something else in it ends at `further`. Raises `TypeError` if the size is
        too small.
        """
        end = max(
            [
                self.at + self.registers.layout.size,
                further,
                *(part.offset + part.size for part in self.memory),
            ]
        )
        smallest = 4 if self.kind is BarKind.IO else 4096
        size = max(smallest, 1 << max(end - 1, 0).bit_length()) if self._size is None else self._size
        if size & (size - 1) or size < max(end, 4 if self.kind is BarKind.IO else 16):
            raise TypeError(f"{self.name}: {size:#x} bytes is no power of two that holds {end:#x}")
        return size

    @property
    def flags(self) -> int:
        """The read-only low bits of the register."""
        if self.kind is BarKind.IO:
            return 1
        return (4 if self.kind is BarKind.MEM64 else 0) | (8 if self.prefetchable else 0)

    @overload
    def __get__(self, device: None, owner: type) -> Self: ...
    @overload
    def __get__(self, device: Owner, owner: type) -> M: ...
    def __get__(self, device: Owner | None, owner: type) -> Self | M:
        if device is None:
            return self
        registers: M = device.bar_registers[self.index]  # type: ignore[assignment]
        return registers

    @overload
    def on_write(
        self, spec: RegisterSpec[R]
    ) -> Callable[[Callable[[D, R], None]], Callable[[D, R], None]]: ...
    @overload
    def on_write(
        self, spec: RegisterArraySpec[R]
    ) -> Callable[[Callable[[D, int, R], None]], Callable[[D, int, R], None]]: ...
    def on_write(self, spec: Declaration[Any]) -> Callable[[Any], Any]:
        """Decorate the method that runs after each guest write to the register, with the new value.

        For an array the method takes the element's index, too. A write to a part of the register runs it as
        well.
        """
        return self._hooking(spec, writes=True)

    @overload
    def on_read(self, spec: RegisterSpec[R]) -> Callable[[Callable[[D, R], int]], Callable[[D, R], int]]: ...
    @overload
    def on_read(
        self, spec: RegisterArraySpec[R]
    ) -> Callable[[Callable[[D, int, R], int]], Callable[[D, int, R], int]]: ...
    def on_read(self, spec: Declaration[Any]) -> Callable[[Any], Any]:
        """Decorate the method that gives what the guest reads; it takes the stored value."""
        return self._hooking(spec, writes=False)

    def _hooking(self, spec: Declaration[Any], *, writes: bool) -> Callable[[Any], Any]:
        if spec not in self.registers.layout.registers:
            raise TypeError(f"{spec.name} is no register of {self.registers.__name__}")

        def mark(method: Any) -> Any:
            hooks = getattr(method, HOOKS_ATTRIBUTE, ())
            setattr(method, HOOKS_ATTRIBUTE, (*hooks, Hook(self, spec, writes)))
            return method

        return mark


class BuiltBar(NamedTuple):
    """A BAR of one device, ready for config space."""

    number: int
    size: int
    flags: int
    wide: bool
    """64-bit: the next register holds the upper half of the address."""

    @property
    def mask(self) -> int:
        """The address bits the guest can write."""
        return (~(self.size - 1) & 0xFFFF_FFFF_FFFF_FFFF) & ~self.flags


def bar_value(bars: Mapping[int, BuiltBar], index: int, value: int) -> int:
    """What BAR register `index` holds after `value` was written to it (7.5.1.2.1): the address bits that can
    be written, and the read-only low bits. 0 for a register that no BAR has.
    """
    bar = bars.get(index)
    if bar is not None:
        return (value & bar.mask & 0xFFFF_FFFF) | bar.flags
    lower = bars.get(index - 1)
    return value & lower.mask >> 32 if lower is not None and lower.wide else 0
