"""Register values: immutable ints that know their fields."""

from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar, Self

from iolane.model.registers.field import Field


class Register(int):
    """The value of a register of `width` bytes. Subclass `Register8` to `Register64` and declare `Field`s."""

    width: ClassVar[int] = 0
    field_table: ClassVar[MappingProxyType[str, Field]] = MappingProxyType({})

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        fields = dict(cls.field_table)
        fields.update({name: item for name, item in vars(cls).items() if isinstance(item, Field)})
        taken = 0
        for name, field in fields.items():
            if cls.width and field.msb >= 8 * cls.width:
                raise TypeError(
                    f"{cls.__name__}.{name}: bit {field.msb} lies outside a {8 * cls.width}-bit register"
                )
            if taken & field.mask:
                raise TypeError(f"{cls.__name__}.{name}: bits {field.bits} belong to another field already")
            taken |= field.mask
        cls.field_table = MappingProxyType(dict(sorted(fields.items(), key=lambda item: item[1].lsb)))

    @classmethod
    def make(cls, **fields: int) -> Self:
        """A value with the named fields set and every other bit 0. Raises what `replace` raises."""
        return cls(0).replace(**fields)

    def replace(self, **fields: int) -> Self:
        """A copy with the named fields changed.

        Raises:
            TypeError: the register has no such field.
            ValueError: the value does not fit into the field.
        """
        value = int(self)
        for name, new in fields.items():
            field = self.field_table.get(name)
            if field is None:
                known = ", ".join(self.field_table) or "none"
                raise TypeError(f"{type(self).__name__} has no field {name} (fields: {known})")
            if new & ~field.limit:
                raise ValueError(f"{type(self).__name__}.{name} has bits {field.bits}, {new:#x} does not fit")
            value = (value & ~field.mask) | (new << field.lsb)
        return type(self)(value)

    def decode(self) -> dict[str, int]:
        """Every field's value by name, lowest bit first."""
        return {name: (self >> field.lsb) & field.limit for name, field in self.field_table.items()}

    def describe(self) -> str:
        """The fields that are not 0, by name: `START=1 MODE=FAST`."""
        shown = ((field, (self >> field.lsb) & field.limit) for field in self.field_table.values())
        return " ".join(f"{field.name}={field.describe(value)}" for field, value in shown if value)

    def __repr__(self) -> str:
        fields = self.describe()
        number = f"{int(self):#0{2 * self.width + 2}x}"
        return f"{type(self).__name__}({number}{': ' + fields if fields else ''})"


class Register8(Register):
    """A register of 8 bits."""

    width = 1


class Register16(Register):
    """A register of 16 bits."""

    width = 2


class Register32(Register):
    """A register of 32 bits."""

    width = 4


class Register64(Register):
    """A register of 64 bits."""

    width = 8
