"""Capabilities: a declaration in the device class, and the object bound to one device that owns the
registers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, Self, TypeVar, overload

from iolane.model.pci.owner import Owner
from iolane.model.registers import RegisterMap
from iolane.model.reset import ResetKind
from iolane.uapi.pci import Capability as CapabilityId
from iolane.uapi.pcie import ExtendedCapability as ExtendedCapabilityId


class BoundCapability(ABC):
    """A capability of one device.

    Attributes:
        id: what the capability's first byte (or 16 bits, if extended) says.
        version: of an extended capability.
        registers: the capability's registers, the id and the next pointer among them.
        offset: where it stands in config space.
    """

    id: ClassVar[int]
    extended: ClassVar[bool] = False
    version: ClassVar[int] = 1

    def __init__(self, registers: RegisterMap) -> None:
        self.registers = registers
        self.offset = 0
        self._next = 0

    @property
    def size(self) -> int:
        """Bytes in config space, a multiple of 8."""
        return self.registers.layout.storage_size

    def place(self, offset: int, storage: memoryview) -> None:
        """Take the place at `offset` of config space, whose bytes from there on are `storage`."""
        self.offset = offset
        self.registers.bind(storage[: self.size])

    def link(self, following: int) -> None:
        """Set the pointer to the next capability, 0 for none."""
        self._next = following
        self._write_header()

    def _write_header(self) -> None:
        if self.extended:
            self.registers.store(0, 4, self.id | self.version << 16 | self._next << 20)
        else:
            self.registers.store(0, 1, self.id)
            self.registers.store(1, 1, self._next)

    def reset(self, kind: ResetKind) -> None:
        """Reset values, then what `fill` sets."""
        self.registers.reset()
        self._write_header()
        self.fill()

    @abstractmethod
    def fill(self) -> None:
        """Set the read-only values that this device declared."""

    def loaded(self) -> None:
        """Saved state was loaded: the constants are set again. Overridden to check the rest, which may be
        hostile.
        """
        self._write_header()
        self.fill()

    def storages(self) -> Mapping[str, memoryview]:
        """Further storage beyond config space, to be saved with the device."""
        return {}


__all__ = ["BoundCapability", "Capability", "CapabilityId", "ExtendedCapabilityId"]

B = TypeVar("B", bound=BoundCapability)


class Capability(ABC, Generic[B]):
    """A capability in a device class. On a device instance the attribute is the bound capability."""

    name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @abstractmethod
    def bind(self, function: Owner) -> B:
        """Make the capability of one device."""

    @overload
    def __get__(self, function: None, owner: type) -> Self: ...
    @overload
    def __get__(self, function: Owner, owner: type) -> B: ...
    def __get__(self, function: Owner | None, owner: type) -> Self | B:
        if function is None:
            return self
        bound: B = function.bound(self)
        return bound
