"""PCI Express endpoint capability (PCI Express Base 6.0, 7.5.3)."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from iolane.model.pci.capability import BoundCapability, Capability, CapabilityId
from iolane.model.pci.owner import Owner
from iolane.model.registers import Field, Register8, Register16, Register32, RegisterMap, register
from iolane.model.reset import ResetKind


class PortType(IntEnum):
    """Device/Port Type of the capabilities register (7.5.3.2)."""

    ENDPOINT = 0
    LEGACY_ENDPOINT = 1
    INTEGRATED_ENDPOINT = 9


class ExpressCapabilities(Register16):
    """PCI Express Capabilities (7.5.3.2)."""

    VERSION = Field(3, 0, reset=2)
    PORT_TYPE = Field(7, 4, values=PortType)


class DeviceCapabilities(Register32):
    """Device Capabilities (7.5.3.3)."""

    MAX_PAYLOAD_SUPPORTED = Field(2, 0, doc="128 bytes << value")
    EXTENDED_TAG = Field(5)
    L0S_LATENCY = Field(8, 6)
    L1_LATENCY = Field(11, 9)
    ROLE_BASED_ERROR_REPORTING = Field(15, reset=1)
    FUNCTION_LEVEL_RESET = Field(28)


class DeviceControl(Register16):
    """Device Control (7.5.3.4)."""

    CORRECTABLE_ENABLE = Field(0)
    NON_FATAL_ENABLE = Field(1)
    FATAL_ENABLE = Field(2)
    UNSUPPORTED_REQUEST_ENABLE = Field(3)
    RELAXED_ORDERING = Field(4, reset=1)
    MAX_PAYLOAD = Field(7, 5)
    EXTENDED_TAG = Field(8)
    NO_SNOOP = Field(11, reset=1)
    MAX_READ_REQUEST = Field(14, 12, reset=2)
    INITIATE_FLR = Field(15, access="wo", doc="writing 1 resets the function; reads as 0")


class DeviceStatus(Register16):
    """Device Status (7.5.3.5)."""

    CORRECTABLE = Field(0, access="w1c")
    NON_FATAL = Field(1, access="w1c")
    FATAL = Field(2, access="w1c")
    UNSUPPORTED_REQUEST = Field(3, access="w1c")
    TRANSACTIONS_PENDING = Field(5)


class LinkCapabilities(Register32):
    """Link Capabilities (7.5.3.6)."""

    MAX_SPEED = Field(3, 0, reset=1, doc="1 is 2.5 GT/s")
    MAX_WIDTH = Field(9, 4, reset=1)


class LinkControl(Register16):
    """Link Control (7.5.3.7)."""

    ASPM = Field(1, 0)
    COMMON_CLOCK = Field(6)
    EXTENDED_SYNCH = Field(7)


class LinkStatus(Register16):
    """Link Status (7.5.3.8)."""

    SPEED = Field(3, 0, reset=1)
    WIDTH = Field(9, 4, reset=1)


class ExpressRegisters(RegisterMap):
    """The capability's registers, version 2."""

    CAPABILITY_ID = register(0x00, Register8, access="ro")
    NEXT = register(0x01, Register8, access="ro")
    CAPABILITIES = register(0x02, ExpressCapabilities, access="ro")
    DEVICE_CAPABILITIES = register(0x04, DeviceCapabilities, access="ro")
    DEVICE_CONTROL = register(0x08, DeviceControl)
    DEVICE_STATUS = register(0x0A, DeviceStatus, access="ro")
    LINK_CAPABILITIES = register(0x0C, LinkCapabilities, access="ro")
    LINK_CONTROL = register(0x10, LinkControl)
    LINK_STATUS = register(0x12, LinkStatus, access="ro")
    DEVICE_CAPABILITIES_2 = register(0x24, Register32, access="ro")
    DEVICE_CONTROL_2 = register(0x28, Register16, access="ro")
    DEVICE_STATUS_2 = register(0x2A, Register16, access="ro")
    LINK_CAPABILITIES_2 = register(0x2C, Register32, access="ro", reset=0x2)
    LINK_CONTROL_2 = register(0x30, Register16, access="ro", reset=0x1)
    LINK_STATUS_2 = register(0x32, Register16, access="ro")
    SLOT_CAPABILITIES_2 = register(0x34, Register32, access="ro")


class VirtualDeviceControl(DeviceControl):
    """Device Control of a VF: what its PF decides for it is reserved (9.3.5.4)."""

    CORRECTABLE_ENABLE = Field(0, access="rsvdp")
    NON_FATAL_ENABLE = Field(1, access="rsvdp")
    FATAL_ENABLE = Field(2, access="rsvdp")
    UNSUPPORTED_REQUEST_ENABLE = Field(3, access="rsvdp")
    RELAXED_ORDERING = Field(4, access="rsvdp")
    MAX_PAYLOAD = Field(7, 5, access="rsvdp")
    EXTENDED_TAG = Field(8, access="rsvdp")
    NO_SNOOP = Field(11, access="rsvdp")
    MAX_READ_REQUEST = Field(14, 12, access="rsvdp")


class VirtualExpressRegisters(ExpressRegisters):
    """The registers of a VF (9.3.5): the link is its PF's, and most of Device Control too."""

    DEVICE_CONTROL = register(0x08, VirtualDeviceControl)
    LINK_CONTROL = register(0x10, LinkControl, access="ro")


class ExpressCapability(BoundCapability):
    """The endpoint's Express capability; writing Initiate FLR calls `reset_function`."""

    id = CapabilityId.EXP
    registers: ExpressRegisters

    def __init__(
        self,
        port_type: PortType,
        flr: bool,
        reset_function: Callable[[ResetKind], None],
        registers: type[ExpressRegisters] = ExpressRegisters,
    ) -> None:
        super().__init__(registers())
        self._port_type = port_type
        self._flr = flr
        self._reset_function = reset_function
        self.registers.hook_write(registers.DEVICE_CONTROL, self._control)

    def _control(self, value: DeviceControl) -> None:
        if not value.INITIATE_FLR:
            return
        self.registers.DEVICE_CONTROL = value.replace(INITIATE_FLR=0)
        if self._flr:
            self._reset_function(ResetKind.FLR)

    def fill(self) -> None:
        registers = self.registers
        registers.CAPABILITIES = registers.CAPABILITIES.replace(PORT_TYPE=self._port_type)
        registers.DEVICE_CAPABILITIES = registers.DEVICE_CAPABILITIES.replace(FUNCTION_LEVEL_RESET=self._flr)


class PcieEndpoint(Capability[ExpressCapability]):
    """Declare the capability.

    Args:
        flr: the function offers Function Level Reset (6.6.2).
        port_type: endpoint behind a port, or integrated into the root complex.
    """

    def __init__(self, *, flr: bool = True, port_type: PortType = PortType.ENDPOINT) -> None:
        self.flr = flr
        self.port_type = port_type

    def bind(self, function: Owner) -> ExpressCapability:
        return ExpressCapability(self.port_type, self.flr, function.reset)


class PcieVirtualEndpoint(PcieEndpoint):
    """Declare the capability of a virtual function, which always offers Function Level Reset (9.3.5.3)."""

    def __init__(self) -> None:
        super().__init__(flr=True)

    def bind(self, function: Owner) -> ExpressCapability:
        return ExpressCapability(self.port_type, self.flr, function.reset, VirtualExpressRegisters)
