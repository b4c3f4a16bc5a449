"""Registers of the 16550 (National Semiconductor PC16550D data sheet, section 8; Linux's linux/serial_reg.h).

Three addresses are shared by several registers. What lies behind them is kept beside the map (`uart.py`);
their storage here holds what was last written and means nothing.
"""

from __future__ import annotations

from enum import IntEnum

from iolane.model.registers import Field, Register8, RegisterMap, register


class InterruptEnable(Register8):
    """IER (8.6): which conditions interrupt."""

    RECEIVED = Field(0)
    TRANSMITTER_EMPTY = Field(1)
    LINE_STATUS = Field(2)
    MODEM_STATUS = Field(3)


class InterruptSource(IntEnum):
    """Bits 3..0 of IIR (8.5, table IV), in order of priority: the first that holds is shown."""

    LINE_STATUS = 0x6
    RECEIVED = 0x4
    TIMEOUT = 0xC
    TRANSMITTER_EMPTY = 0x2
    MODEM_STATUS = 0x0
    NONE = 0x1


class FifoControl(Register8):
    """FCR (8.4)."""

    ENABLE = Field(0)
    CLEAR_RECEIVER = Field(1)
    CLEAR_TRANSMITTER = Field(2)
    DMA_MODE = Field(3)
    TRIGGER = Field(7, 6)


class LineControl(Register8):
    """LCR (8.1)."""

    WORD_LENGTH = Field(1, 0, doc="5 to 8 bits")
    STOP_BITS = Field(2)
    PARITY = Field(3)
    EVEN_PARITY = Field(4)
    STICK_PARITY = Field(5)
    BREAK = Field(6, doc="hold the line in the break condition")
    DIVISOR_LATCH = Field(7, doc="offsets 0 and 1 are the divisor")


class ModemControl(Register8):
    """MCR (8.7)."""

    DTR = Field(0)
    RTS = Field(1)
    OUT1 = Field(2)
    OUT2 = Field(3)
    LOOP = Field(4, doc="transmitter and outputs are connected to receiver and inputs")


class LineStatus(Register8):
    """LSR (8.3)."""

    DATA_READY = Field(0)
    OVERRUN = Field(1)
    PARITY_ERROR = Field(2)
    FRAMING_ERROR = Field(3)
    BREAK = Field(4)
    HOLDING_EMPTY = Field(5, doc="transmitter holding register, or FIFO, is empty")
    EMPTY = Field(6, doc="the shift register is empty, too")
    FIFO_ERROR = Field(7)


class ModemStatus(Register8):
    """MSR (8.8): the inputs, and which of them changed since the last read."""

    DELTA_CTS = Field(0)
    DELTA_DSR = Field(1)
    TRAILING_RI = Field(2)
    DELTA_DCD = Field(3)
    CTS = Field(4)
    DSR = Field(5)
    RI = Field(6)
    DCD = Field(7)


class UartRegisters(RegisterMap):
    """The eight addresses (8, table II)."""

    DATA = register(0, Register8, doc="receiver buffer; transmitter holding; divisor, low byte")
    INTERRUPT_ENABLE = register(1, Register8, doc="interrupt enable; divisor, high byte")
    INTERRUPT_IDENTIFICATION = register(2, Register8, doc="interrupt identification; FIFO control")
    LINE_CONTROL = register(3, LineControl)
    MODEM_CONTROL = register(4, ModemControl)
    LINE_STATUS = register(5, LineStatus, access="ro")
    MODEM_STATUS = register(6, ModemStatus, access="ro")
    SCRATCH = register(7, Register8)
