"""Alternative Routing-ID Interpretation extended capability (PCI Express Base 6.0, 7.8.8)."""

from __future__ import annotations

from iolane.model.pci.capability import BoundCapability, Capability, ExtendedCapabilityId
from iolane.model.pci.owner import Owner
from iolane.model.registers import Field, Register16, Register32, RegisterMap, register


class AriCapabilities(Register16):
    """ARI Capability (7.8.8.2). No function groups."""

    MFVC_GROUPS = Field(0)
    ACS_GROUPS = Field(1)
    NEXT_FUNCTION = Field(15, 8, doc="the next physical function of the device, 0 for none")


class AriRegisters(RegisterMap):
    """The capability's registers. Control has a bit only for a function with groups (7.8.8.3)."""

    HEADER = register(0x0, Register32, access="ro")
    CAPABILITIES = register(0x4, AriCapabilities, access="ro")
    CONTROL = register(0x6, Register16, access="ro")


class AriCapability(BoundCapability):
    """Says that the function takes all 8 bits of device and function number for its function number."""

    id = ExtendedCapabilityId.ARI
    extended = True
    registers: AriRegisters

    def __init__(self, next_function: int) -> None:
        super().__init__(AriRegisters())
        self._next_function = next_function

    def fill(self) -> None:
        registers = self.registers
        registers.CAPABILITIES = registers.CAPABILITIES.replace(NEXT_FUNCTION=self._next_function)


class Ari(Capability[AriCapability]):
    """Declare the capability, which every function of an SR-IOV device has (9.3.7).

    Args:
        next_function: number of the device's next physical function, 0 for none.
    """

    def __init__(self, *, next_function: int = 0) -> None:
        if not 0 <= next_function <= 255:
            raise TypeError(f"a function number is 0 to 255, not {next_function}")
        self.next_function = next_function

    def bind(self, function: Owner) -> AriCapability:
        return AriCapability(self.next_function)
