"""What a 16550 remembers beside its registers."""

from __future__ import annotations

from typing import Annotated

import msgspec

from iolane.model.state import DeviceState

FIFO_DEPTH = 16

Fifo = Annotated[bytes, msgspec.Meta(max_length=FIFO_DEPTH)]
Nibble = Annotated[int, msgspec.Meta(ge=0, le=0xF)]
Byte = Annotated[int, msgspec.Meta(ge=0, le=0xFF)]


class UartState(DeviceState):
    """Banked registers, FIFOs and pending conditions.

    Attributes:
        divisor: of the baud rate, which is otherwise ignored.
        errors: LSR's error bits of each byte in `received`.
        transmitter_pending: THRE interrupts until it is shown in IIR or the next byte is written.
        timeout_pending: received bytes have waited for too long.
        lines: CTS, DSR, RI, DCD from bit 0.
        deltas: of `lines`, as in MSR.
    """

    divisor: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)] = 12
    interrupt_enable: Nibble = 0
    fifo_control: Byte = 0
    received: Fifo = b""
    errors: Fifo = b""
    overrun: bool = False
    timeout_pending: bool = False
    transmit: Fifo = b""
    transmitter_pending: bool = False
    lines: Nibble = 0
    deltas: Nibble = 0
