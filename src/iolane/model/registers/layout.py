"""A register map compiled: where each register lies, byte by byte."""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple

from iolane.model.registers.spec import Declaration

AnyDeclaration = Declaration[Any]


class Place(NamedTuple):
    """A register found at an offset."""

    spec: AnyDeclaration
    element: int
    """Element of the array, 0 for a single register."""
    offset: int
    """Byte offset at which the element starts."""


class Layout:
    """The compiled form of a `RegisterMap` class.

    Attributes:
        size: bytes from offset 0 to the end of the last register.
        storage_size: `size` rounded up to 8, the bytes of storage an instance needs.
        registers: declarations in order of offset; their `index` is their place in this tuple.
    """

    def __init__(self, owner: str, declarations: list[AnyDeclaration]) -> None:
        self.registers = tuple(sorted(declarations, key=lambda spec: spec.offset))
        self.size = max(
            (spec.element_offset(spec.count - 1) + spec.width for spec in self.registers), default=0
        )
        self.storage_size = -(-self.size // 8) * 8
        self._owner_of_byte = array("H", bytes(2 * self.size))
        for index, spec in enumerate(self.registers):
            spec.index = index
            self._claim(owner, spec)
        self.reset_image = self._compile_reset_image()

    def _claim(self, owner: str, spec: AnyDeclaration) -> None:
        mark = array("H", [spec.index + 1] * spec.width)
        free = array("H", [0] * spec.width)
        for element in range(spec.count):
            start = spec.element_offset(element)
            if self._owner_of_byte[start : start + spec.width] != free:
                other = next(
                    self.registers[item - 1]
                    for item in self._owner_of_byte[start : start + spec.width]
                    if item
                )
                raise TypeError(f"{owner}: {spec.element_name(element)} at {start:#x} overlaps {other.name}")
            self._owner_of_byte[start : start + spec.width] = mark

    def _compile_reset_image(self) -> bytes:
        image = bytearray(self.storage_size)
        for spec in self.registers:
            if spec.reset:
                value = spec.reset.to_bytes(spec.width, "little")
                for element in range(spec.count):
                    start = spec.element_offset(element)
                    image[start : start + spec.width] = value
        return bytes(image)

    def find(self, offset: int) -> Place | None:
        """The register that holds byte `offset`, or None."""
        if not 0 <= offset < self.size:
            return None
        number = self._owner_of_byte[offset]
        if not number:
            return None
        spec = self.registers[number - 1]
        index = (offset - spec.offset) // spec.stride
        return Place(spec, index, spec.offset + index * spec.stride)
