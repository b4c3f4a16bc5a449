"""The structures in a virtio function's BAR (virtio 1.3, 4.1.4.3 to 4.1.4.5)."""

from __future__ import annotations

from functools import cache

from iolane.model.registers import (
    Field,
    Register8,
    Register16,
    Register32,
    Register64,
    RegisterMap,
    register,
    register_array,
)

NOTIFY_STRIDE = 4
"""notify_off_multiplier: bytes between the notification addresses of two queues."""


class CommonRegisters(RegisterMap):
    """The common configuration structure (4.1.4.3)."""

    DEVICE_FEATURE_SELECT = register(0x00, Register32)
    DEVICE_FEATURE = register(0x04, Register32, access="ro")
    DRIVER_FEATURE_SELECT = register(0x08, Register32)
    DRIVER_FEATURE = register(0x0C, Register32)
    CONFIG_MSIX_VECTOR = register(0x10, Register16, reset=0xFFFF)
    NUM_QUEUES = register(0x12, Register16, access="ro")
    DEVICE_STATUS = register(0x14, Register8)
    CONFIG_GENERATION = register(0x15, Register8, access="ro")
    QUEUE_SELECT = register(0x16, Register16)
    QUEUE_SIZE = register(0x18, Register16, doc="0: there is no such queue")
    QUEUE_MSIX_VECTOR = register(0x1A, Register16, reset=0xFFFF)
    QUEUE_ENABLE = register(0x1C, Register16)
    QUEUE_NOTIFY_OFF = register(0x1E, Register16, access="ro")
    QUEUE_DESC = register(0x20, Register64)
    QUEUE_DRIVER = register(0x28, Register64)
    QUEUE_DEVICE = register(0x30, Register64)
    QUEUE_NOTIF_CONFIG_DATA = register(0x38, Register16, access="ro")
    QUEUE_RESET = register(0x3A, Register16)
    ADMIN_QUEUE_INDEX = register(0x3C, Register16, access="ro")
    ADMIN_QUEUE_NUM = register(0x3E, Register16, access="ro")


class InterruptStatus(Register8):
    """ISR status (4.1.4.5); reading it clears it and deasserts the interrupt pin."""

    QUEUE = Field(0)
    CONFIG = Field(1)


class InterruptRegisters(RegisterMap):
    """The ISR status structure."""

    STATUS = register(0x0, InterruptStatus, access="ro")


class NotifyRegisters(RegisterMap):
    """The notification structure (4.1.4.4): an address for each queue. `notify_registers` makes one of the
    right length.
    """

    KICK = register_array(0x0, Register16, 1, stride=NOTIFY_STRIDE, access="wo")


@cache
def notify_registers(queues: int) -> type[NotifyRegisters]:
    """The notification structure of a number of queues."""
    kick = register_array(0x0, Register16, max(queues, 1), stride=NOTIFY_STRIDE, access="wo")
    return type(f"NotifyRegisters{queues}", (NotifyRegisters,), {"KICK": kick})
