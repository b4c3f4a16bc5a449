"""The receiving half of a 16550: buffer or FIFO, errors, trigger level."""

from __future__ import annotations

from iolane.devices.serial.registers import FifoControl, LineStatus
from iolane.devices.serial.state import FIFO_DEPTH

TRIGGERS = (1, 4, 8, 14)
"""Bytes in the FIFO that interrupt, by FCR.TRIGGER (8.4)."""
BREAK = LineStatus.make(BREAK=1)
ERRORS = LineStatus.make(PARITY_ERROR=1, FRAMING_ERROR=1, BREAK=1)


class Receiver:
    """Bytes that arrived and were not read yet, each with its error bits of LSR."""

    def __init__(self) -> None:
        self.depth = 1
        self.trigger = 1
        self.data = bytearray()
        self.errors = bytearray()
        self.overrun = False
        self.timed_out = False

    def configure(self, control: FifoControl) -> None:
        """Take over FCR."""
        self.depth = FIFO_DEPTH if control.ENABLE else 1
        self.trigger = TRIGGERS[control.TRIGGER] if control.ENABLE else 1

    def clear(self) -> None:
        """Forget what was not read."""
        self.data.clear()
        self.errors.clear()
        self.timed_out = False

    @property
    def room(self) -> int:
        """Bytes that can arrive without an overrun."""
        return self.depth - len(self.data)

    @property
    def triggered(self) -> bool:
        """Whether the trigger level is reached."""
        return len(self.data) >= self.trigger

    def put(self, byte: int, errors: int = 0) -> None:
        """A byte arrives. A full FIFO keeps what it has, a full buffer takes the new byte (8.3)."""
        if len(self.data) < self.depth:
            self.data.append(byte)
            self.errors.append(errors)
            return
        self.overrun = True
        if self.depth == 1:
            self.data[0], self.errors[0] = byte, errors

    def take(self) -> int:
        """The driver reads the buffer: the oldest byte, 0 when there is none."""
        self.timed_out = False
        if not self.data:
            return 0
        del self.errors[0]
        return self.data.pop(0)

    @property
    def faulty(self) -> bool:
        """Whether the line status interrupts: an overrun, or an error of the oldest byte."""
        return self.overrun or bool(self.errors and self.errors[0])

    @property
    def status(self) -> int:
        """The receiver's bits of LSR."""
        status = int(bool(self.data)) | self.overrun << 1
        if self.errors:
            status |= self.errors[0]
            if self.depth > 1 and any(self.errors):
                status |= 0x80
        return status

    def acknowledge(self) -> None:
        """LSR was read: its error bits clear."""
        self.overrun = False
        if self.errors:
            self.errors[0] = 0
