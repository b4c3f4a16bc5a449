"""Registers: the notation in which a device declares what the guest can touch."""

from iolane.model.registers.access import Access
from iolane.model.registers.field import Field
from iolane.model.registers.layout import Layout, Place
from iolane.model.registers.map import RegisterMap
from iolane.model.registers.register import Register, Register8, Register16, Register32, Register64
from iolane.model.registers.spec import (
    ArrayView,
    Declaration,
    RegisterArraySpec,
    RegisterSpec,
    register,
    register_array,
)

__all__ = [
    "Access",
    "ArrayView",
    "Declaration",
    "Field",
    "Layout",
    "Place",
    "Register",
    "Register8",
    "Register16",
    "Register32",
    "Register64",
    "RegisterArraySpec",
    "RegisterMap",
    "RegisterSpec",
    "register",
    "register_array",
]
