"""Declarations of registers in a `RegisterMap`: one register, or an array of equal ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, Self, TypeVar, overload

from iolane.model.registers.access import Access
from iolane.model.registers.register import Register

R = TypeVar("R", bound=Register)


class Storage(Protocol):
    """Where values are kept: a `RegisterMap`, seen from the device's side."""

    def load(self, offset: int, width: int) -> int: ...

    def store(self, offset: int, width: int, value: int) -> None: ...


class Declaration(Generic[R]):
    """What both kinds of declaration share: place, type, access and the masks that follow from them."""

    def __init__(
        self,
        offset: int,
        type: type[R],
        *,
        access: Access | str,
        reset: int,
        count: int,
        stride: int,
        doc: str,
    ) -> None:
        self.name = ""
        self.index = -1
        self.offset = offset
        self.type = type
        self.width = type.width
        self.access = Access(access)
        self.count = count
        self.stride = stride
        self.doc = doc
        self._check_place()
        self.full = (1 << 8 * self.width) - 1
        self.masks = self._compile_masks()
        self.reset = self._compile_reset(reset)

    def _check_place(self) -> None:
        if self.width not in (1, 2, 4, 8):
            raise TypeError(f"{self.type.__name__} has no width: derive it from Register8, 16, 32 or 64")
        if (
            self.offset < 0
            or self.offset % self.width
            or self.stride % self.width
            or self.stride < self.width
        ):
            raise TypeError(
                f"a {self.width}-byte register needs an offset and stride that are multiples of {self.width}"
            )
        if self.count < 1:
            raise TypeError("a register array needs a count of at least 1")

    def _compile_masks(self) -> dict[Access, int]:
        masks = dict.fromkeys(Access, 0)
        if not self.type.field_table:
            masks[self.access] = self.full
            return masks
        for field in self.type.field_table.values():
            masks[field.access or self.access] |= field.mask
        masks[Access.RSVDP] |= self.full & ~sum(masks.values())
        return masks

    def _compile_reset(self, reset: int) -> int:
        for field in self.type.field_table.values():
            reset |= field.reset << field.lsb
        if reset & ~self.full:
            raise TypeError(f"reset value {reset:#x} does not fit into {self.width} bytes")
        return reset

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @property
    def stored(self) -> int:
        """Bits that a guest's write stores (rw and wo)."""
        return self.masks[Access.RW] | self.masks[Access.WO]

    @property
    def hidden(self) -> int:
        """Bits that read as 0 (wo)."""
        return self.masks[Access.WO]

    def element_offset(self, index: int) -> int:
        """Byte offset of element `index` in the map."""
        return self.offset + index * self.stride

    def element_name(self, index: int) -> str:
        """`NAME`, or `NAME[index]` in an array."""
        return self.name if self.count == 1 else f"{self.name}[{index}]"


class RegisterSpec(Declaration[R]):
    """One register. On a map instance the attribute is the stored value, past access kinds and hooks."""

    @overload
    def __get__(self, registers: None, owner: type) -> Self: ...
    @overload
    def __get__(self, registers: Storage, owner: type) -> R: ...
    def __get__(self, registers: Storage | None, owner: type) -> Self | R:
        if registers is None:
            return self
        return self.type(registers.load(self.offset, self.width))

    def __set__(self, registers: Storage, value: int) -> None:
        registers.store(self.offset, self.width, value & self.full)


class RegisterArraySpec(Declaration[R]):
    """`count` equal registers, `stride` bytes apart. On a map instance the attribute is an `ArrayView`."""

    @overload
    def __get__(self, registers: None, owner: type) -> Self: ...
    @overload
    def __get__(self, registers: Storage, owner: type) -> ArrayView[R]: ...
    def __get__(self, registers: Storage | None, owner: type) -> Self | ArrayView[R]:
        if registers is None:
            return self
        return ArrayView(registers, self)


class ArrayView(Generic[R]):
    """The elements of a register array in one map."""

    __slots__ = ("_registers", "_spec")

    def __init__(self, registers: Storage, spec: RegisterArraySpec[R]) -> None:
        self._registers = registers
        self._spec = spec

    def __len__(self) -> int:
        return self._spec.count

    def __iter__(self) -> Iterator[R]:
        return (self[index] for index in range(self._spec.count))

    def _offset(self, index: int) -> int:
        if not 0 <= index < self._spec.count:
            raise IndexError(f"{self._spec.name}[{index}]: the array has {self._spec.count} elements")
        return self._spec.offset + index * self._spec.stride

    def __getitem__(self, index: int) -> R:
        return self._spec.type(self._registers.load(self._offset(index), self._spec.width))

    def __setitem__(self, index: int, value: int) -> None:
        self._registers.store(self._offset(index), self._spec.width, value & self._spec.full)


def register(
    offset: int, type: type[R], *, access: Access | str = Access.RW, reset: int = 0, doc: str = ""
) -> RegisterSpec[R]:
    """Declare one register at byte `offset`. `access` holds for every bit that no field says otherwise of."""
    return RegisterSpec(offset, type, access=access, reset=reset, count=1, stride=max(type.width, 1), doc=doc)


def register_array(
    offset: int,
    type: type[R],
    count: int,
    *,
    stride: int | None = None,
    access: Access | str = Access.RW,
    reset: int = 0,
    doc: str = "",
) -> RegisterArraySpec[R]:
    """Declare `count` registers, the first at byte `offset`, `stride` bytes apart (packed when left out)."""
    step = max(type.width, 1) if stride is None else stride
    return RegisterArraySpec(offset, type, access=access, reset=reset, count=count, stride=step, doc=doc)
