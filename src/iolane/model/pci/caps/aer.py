"""Advanced Error Reporting extended capability (PCI Express Base 6.0, 7.8.4)."""

from __future__ import annotations

from iolane.model.pci.capability import BoundCapability, Capability, ExtendedCapabilityId
from iolane.model.pci.owner import Owner
from iolane.model.registers import Field, Register32, RegisterMap, register, register_array
from iolane.model.reset import ResetKind


class UncorrectableErrors(Register32):
    """The bits of the uncorrectable status, mask and severity registers (7.8.4.2 to 7.8.4.4)."""

    DATA_LINK_PROTOCOL = Field(4)
    POISONED_TLP = Field(12)
    FLOW_CONTROL = Field(13)
    COMPLETION_TIMEOUT = Field(14)
    COMPLETER_ABORT = Field(15)
    UNEXPECTED_COMPLETION = Field(16)
    RECEIVER_OVERFLOW = Field(17)
    MALFORMED_TLP = Field(18)
    ECRC = Field(19)
    UNSUPPORTED_REQUEST = Field(20)
    INTERNAL = Field(22)


class CorrectableErrors(Register32):
    """The bits of the correctable status and mask registers (7.8.4.5, 7.8.4.6)."""

    RECEIVER = Field(0)
    BAD_TLP = Field(6)
    BAD_DLLP = Field(7)
    REPLAY_ROLLOVER = Field(8)
    REPLAY_TIMEOUT = Field(12)
    ADVISORY_NON_FATAL = Field(13)
    INTERNAL = Field(14)


class ErrorControl(Register32):
    """Advanced Error Capabilities and Control (7.8.4.7)."""

    FIRST_ERROR = Field(4, 0, access="ro")


class AerRegisters(RegisterMap):
    """The capability's registers."""

    HEADER = register(0x00, Register32, access="ro")
    UNCORRECTABLE_STATUS = register(0x04, UncorrectableErrors, access="w1c")
    UNCORRECTABLE_MASK = register(0x08, UncorrectableErrors, reset=1 << 22)
    UNCORRECTABLE_SEVERITY = register(0x0C, UncorrectableErrors, reset=0x0046_2010)
    CORRECTABLE_STATUS = register(0x10, CorrectableErrors, access="w1c")
    CORRECTABLE_MASK = register(0x14, CorrectableErrors, reset=0x6000)
    CONTROL = register(0x18, ErrorControl)
    HEADER_LOG = register_array(0x1C, Register32, 4, access="ro")


class AerCapability(BoundCapability):
    """Error status that software reads and clears. Status and log survive a Function Level Reset (sticky
    bits).
    """

    id = ExtendedCapabilityId.ERR
    extended = True
    version = 2
    registers: AerRegisters

    def __init__(self) -> None:
        super().__init__(AerRegisters())

    def reset(self, kind: ResetKind) -> None:
        if kind is ResetKind.CONVENTIONAL:
            super().reset(kind)

    def fill(self) -> None:
        """Nothing beyond the reset values."""

    def report_uncorrectable(self, error: Field, header: tuple[int, int, int, int] = (0, 0, 0, 0)) -> None:
        """Set the status bit of `error` (a field of `UncorrectableErrors`); the first unmasked one is
        logged.
        """
        registers = self.registers
        status = registers.UNCORRECTABLE_STATUS
        if not status & ~registers.UNCORRECTABLE_MASK and not registers.UNCORRECTABLE_MASK & error.mask:
            registers.CONTROL = registers.CONTROL.replace(FIRST_ERROR=error.lsb)
            for index, word in enumerate(header):
                registers.HEADER_LOG[index] = word
        registers.UNCORRECTABLE_STATUS = status | error.mask

    def report_correctable(self, error: Field) -> None:
        """Set the status bit of `error` (a field of `CorrectableErrors`)."""
        self.registers.CORRECTABLE_STATUS = self.registers.CORRECTABLE_STATUS | error.mask


class Aer(Capability[AerCapability]):
    """Declare the capability."""

    def bind(self, function: Owner) -> AerCapability:
        return AerCapability()
