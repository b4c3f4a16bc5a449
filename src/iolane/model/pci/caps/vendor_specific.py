"""Vendor-specific capability (PCI Express Base 6.0, 7.9.4)."""

from __future__ import annotations

from iolane.model.pci.capability import BoundCapability, Capability, CapabilityId
from iolane.model.pci.owner import Owner
from iolane.model.registers import Register8, RegisterMap, register, register_array


class VendorSpecificRegisters(RegisterMap):
    """Id, next, length; the body follows."""

    CAPABILITY_ID = register(0x0, Register8, access="ro")
    NEXT = register(0x1, Register8, access="ro")
    LENGTH = register(0x2, Register8, access="ro")


class VendorSpecificCapability(BoundCapability):
    """A read-only body of bytes whose meaning is the vendor's."""

    id = CapabilityId.VNDR

    def __init__(self, data: bytes) -> None:
        body = {"DATA": register_array(0x3, Register8, len(data), access="ro")} if data else {}
        super().__init__(type("VendorSpecificRegisters", (VendorSpecificRegisters,), body)())
        self._data = data

    def fill(self) -> None:
        self.registers.store(2, 1, 3 + len(self._data))
        self.registers.storage[3 : 3 + len(self._data)] = self._data


class VendorSpecific(Capability[VendorSpecificCapability]):
    """Declare the capability with `data`, at most 188 bytes, the body after the length byte."""

    def __init__(self, data: bytes) -> None:
        if len(data) > 188:
            raise TypeError("a vendor-specific capability has at most 188 bytes of data")
        self.data = data

    def bind(self, function: Owner) -> VendorSpecificCapability:
        return VendorSpecificCapability(self.data)
