"""The type 0 configuration header (PCI Express Base 6.0, 7.5.1)."""

from __future__ import annotations

from iolane.model.registers import (
    Access,
    Field,
    Register8,
    Register16,
    Register32,
    RegisterMap,
    register,
    register_array,
)


class Command(Register16):
    """What the function may do (7.5.1.1.3)."""

    IO = Field(0, doc="answers I/O accesses")
    MEMORY = Field(1, doc="answers memory accesses")
    BUS_MASTER = Field(2, doc="may do DMA and send MSI and MSI-X")
    PARITY_ERROR_RESPONSE = Field(6)
    SERR_ENABLE = Field(8)
    INTX_DISABLE = Field(10, doc="the interrupt pin stays deasserted")


class Status(Register16):
    """What happened to the function (7.5.1.1.4)."""

    INTERRUPT = Field(3, access=Access.RO, doc="the interrupt pin is asserted, whether disabled or not")
    CAPABILITIES_LIST = Field(4, access=Access.RO)
    MASTER_DATA_PARITY_ERROR = Field(8, access=Access.W1C)
    SIGNALED_TARGET_ABORT = Field(11, access=Access.W1C)
    RECEIVED_TARGET_ABORT = Field(12, access=Access.W1C)
    RECEIVED_MASTER_ABORT = Field(13, access=Access.W1C)
    SIGNALED_SYSTEM_ERROR = Field(14, access=Access.W1C)
    DETECTED_PARITY_ERROR = Field(15, access=Access.W1C)


class Type0Header(RegisterMap):
    """The first 64 bytes of config space."""

    VENDOR_ID = register(0x00, Register16, access="ro")
    DEVICE_ID = register(0x02, Register16, access="ro")
    COMMAND = register(0x04, Command)
    STATUS = register(0x06, Status, access="rsvdp")
    REVISION_ID = register(0x08, Register8, access="ro")
    PROGRAMMING_INTERFACE = register(0x09, Register8, access="ro")
    SUB_CLASS = register(0x0A, Register8, access="ro")
    BASE_CLASS = register(0x0B, Register8, access="ro")
    CACHE_LINE_SIZE = register(0x0C, Register8)
    LATENCY_TIMER = register(0x0D, Register8, access="ro")
    HEADER_TYPE = register(0x0E, Register8, access="ro")
    BIST = register(0x0F, Register8, access="ro")
    BAR = register_array(0x10, Register32, 6)
    CARDBUS_CIS = register(0x28, Register32, access="ro")
    SUBSYSTEM_VENDOR_ID = register(0x2C, Register16, access="ro")
    SUBSYSTEM_ID = register(0x2E, Register16, access="ro")
    EXPANSION_ROM = register(0x30, Register32, access="ro")
    CAPABILITIES_POINTER = register(0x34, Register8, access="ro")
    INTERRUPT_LINE = register(0x3C, Register8)
    INTERRUPT_PIN = register(0x3D, Register8, access="ro")
    MIN_GNT = register(0x3E, Register8, access="ro")
    MAX_LAT = register(0x3F, Register8, access="ro")
