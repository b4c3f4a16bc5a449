"""PCI Power Management (PCI Bus Power Management 1.2, 3.2; PCI Express Base 6.0, 7.5.2)."""

from __future__ import annotations

from iolane.model.pci.capability import BoundCapability, Capability, CapabilityId
from iolane.model.pci.owner import Owner
from iolane.model.registers import Field, Register8, Register16, RegisterMap, register
from iolane.model.reset import ResetKind


class PowerCapabilities(Register16):
    """PMC: what the function can do."""

    VERSION = Field(2, 0, reset=3)


class PowerControlStatus(Register16):
    """PMCSR: the power state and how to leave it."""

    POWER_STATE = Field(1, 0, access="rw", doc="0 is D0, 3 is D3hot")
    NO_SOFT_RESET = Field(3, reset=1, doc="D3hot to D0 keeps the state")


class PowerManagementRegisters(RegisterMap):
    """The capability's registers."""

    CAPABILITY_ID = register(0x0, Register8, access="ro")
    NEXT = register(0x1, Register8, access="ro")
    CAPABILITIES = register(0x2, PowerCapabilities, access="ro")
    CONTROL_STATUS = register(0x4, PowerControlStatus, access="ro")


class PowerManagementCapability(BoundCapability):
    """Power states D0 and D3hot; D1 and D2 are not supported, so writing them changes nothing (PMCSR,
    3.2.4).
    """

    id = CapabilityId.PM
    registers: PowerManagementRegisters

    def __init__(self) -> None:
        super().__init__(PowerManagementRegisters())
        self._state = 0
        self.registers.hook_write(PowerManagementRegisters.CONTROL_STATUS, self._changed)

    @property
    def power_state(self) -> int:
        """0 for D0, 3 for D3hot."""
        return self._state

    def _changed(self, value: PowerControlStatus) -> None:
        if value.POWER_STATE in (0, 3):
            self._state = value.POWER_STATE
        else:
            self.registers.CONTROL_STATUS = value.replace(POWER_STATE=self._state)

    def reset(self, kind: ResetKind) -> None:
        self._state = 0
        super().reset(kind)

    def fill(self) -> None:
        self._changed(self.registers.CONTROL_STATUS)


class PowerManagement(Capability[PowerManagementCapability]):
    """Declare the capability: D0 and D3hot, no PME."""

    def bind(self, function: Owner) -> PowerManagementCapability:
        return PowerManagementCapability()
