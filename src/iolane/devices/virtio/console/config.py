"""Configuration of the console device (virtio 1.3, 5.3.4)."""

from __future__ import annotations

from iolane.model.registers import Register16, Register32, RegisterMap, register


class ConsoleConfig(RegisterMap):
    """struct virtio_console_config."""

    COLS = register(0x0, Register16, access="ro")
    ROWS = register(0x2, Register16, access="ro")
    MAX_NR_PORTS = register(0x4, Register32, access="ro")
    EMERG_WR = register(0x8, Register32, access="wo", doc="a character, before or without any queue")
