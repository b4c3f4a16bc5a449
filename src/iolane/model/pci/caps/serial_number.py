"""Device Serial Number extended capability (PCI Express Base 6.0, 7.9.3)."""

from __future__ import annotations

from iolane.model.pci.capability import BoundCapability, Capability, ExtendedCapabilityId
from iolane.model.pci.owner import Owner
from iolane.model.registers import Register32, RegisterMap, register


class SerialNumberRegisters(RegisterMap):
    """Header and the 64-bit number in two halves."""

    HEADER = register(0x0, Register32, access="ro")
    LOWER = register(0x4, Register32, access="ro")
    UPPER = register(0x8, Register32, access="ro")


class SerialNumberCapability(BoundCapability):
    """The function's EUI-64."""

    id = ExtendedCapabilityId.DSN
    extended = True
    registers: SerialNumberRegisters

    def __init__(self, value: int) -> None:
        super().__init__(SerialNumberRegisters())
        self._value = value

    def fill(self) -> None:
        self.registers.LOWER = self._value & 0xFFFF_FFFF
        self.registers.UPPER = self._value >> 32


class SerialNumber(Capability[SerialNumberCapability]):
    """Declare the capability with a 64-bit number (EUI-64)."""

    def __init__(self, value: int) -> None:
        if not 0 <= value < 1 << 64:
            raise TypeError("a device serial number has 64 bits")
        self.value = value

    def bind(self, function: Owner) -> SerialNumberCapability:
        return SerialNumberCapability(self.value)
