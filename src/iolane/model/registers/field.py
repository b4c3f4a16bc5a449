"""A named range of bits in a register."""

from __future__ import annotations

from enum import IntEnum
from typing import Self, overload

from iolane.model.registers.access import Access


class Field:
    """Bits `msb` down to `lsb` of a register, declared as a class attribute of a `Register`.

    On a register value the attribute is the field's value, shifted down; on the class it is the `Field`.

    Args:
        msb: highest bit of the field.
        lsb: lowest bit; the field is the single bit `msb` when it is left out.
        access: overrides the access kind of the whole register.
        reset: value after reset, shifted down.
        values: names of the field's values, used when a trace decodes it.
        doc: one line for the register table.
    """

    __slots__ = ("access", "doc", "limit", "lsb", "mask", "msb", "name", "reset", "values")

    def __init__(
        self,
        msb: int,
        lsb: int | None = None,
        *,
        access: Access | str | None = None,
        reset: int = 0,
        values: type[IntEnum] | None = None,
        doc: str = "",
    ) -> None:
        low = msb if lsb is None else lsb
        if not 0 <= low <= msb <= 63:
            raise ValueError(f"a field needs 63 >= msb >= lsb >= 0, not msb={msb}, lsb={low}")
        self.msb = msb
        self.lsb = low
        self.limit = (1 << (msb - low + 1)) - 1
        self.mask = self.limit << low
        self.access = None if access is None else Access(access)
        if reset & ~self.limit:
            raise ValueError(f"reset value {reset:#x} does not fit into bits {msb}..{low}")
        self.reset = reset
        self.values = values
        self.doc = doc
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, value: None, owner: type) -> Self: ...
    @overload
    def __get__(self, value: int, owner: type) -> int: ...
    def __get__(self, value: int | None, owner: type) -> Self | int:
        if value is None:
            return self
        return (value >> self.lsb) & self.limit

    @property
    def bits(self) -> str:
        """The bit range as specifications write it: `7` or `3:1`."""
        return f"{self.msb}" if self.msb == self.lsb else f"{self.msb}:{self.lsb}"

    def describe(self, value: int) -> str:
        """The field's value (already shifted down) by name if it has one, else as a number."""
        if self.values is not None:
            try:
                return self.values(value).name
            except ValueError:
                pass
        return f"{value:#x}" if value > 9 else str(value)
