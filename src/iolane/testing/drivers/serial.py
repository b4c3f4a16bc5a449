"""A driver of the 16550A, over the device itself: interrupt-driven, as Linux's 8250_port."""

from __future__ import annotations

from iolane.devices.serial import PciSerial
from iolane.devices.serial.registers import InterruptSource
from iolane.devices.serial.state import FIFO_DEPTH
from iolane.testing.drivers.function import FunctionDriver

DATA, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = 0, 1, 2, 2, 3, 4, 5, 6, 7
DATA_READY, HOLDING_EMPTY = 0x01, 0x20
ENABLE_ALL = 0x0F
MOST_AT_ONCE = 256


class SerialDriver(FunctionDriver[PciSerial]):
    """Reads and writes a port by interrupts. `received` is what came in, `waiting` what has to go out."""

    def enable(self) -> None:
        """Also sets up the port: FIFOs with trigger level 8, eight data bits, DTR, RTS and OUT2."""
        super().enable()
        self.received = bytearray()
        self.waiting = bytearray()
        self.put(FCR, 0x87)
        self.put(LCR, 0x03)
        self.put(MCR, 0x0B)
        self.put(IER, ENABLE_ALL & ~2)

    def get(self, register: int) -> int:
        """Read one of the eight registers."""
        return self.read(register, 1)

    def put(self, register: int, value: int) -> None:
        """Write one of the eight registers."""
        self.write(register, 1, value)

    def send(self, data: bytes) -> None:
        """Queue `data`, and have the transmitter interrupt."""
        self.waiting += data
        if self.waiting:
            self.put(IER, ENABLE_ALL)

    def handle(self) -> list[InterruptSource]:
        """The interrupt handler: serves sources until none is left, and says which they were."""
        served: list[InterruptSource] = []
        while (source := InterruptSource(self.get(IIR) & 0x0F)) is not InterruptSource.NONE:
            served.append(source)
            status = self.get(LSR)
            while status & DATA_READY and len(served) < MOST_AT_ONCE:
                self.received.append(self.get(DATA))
                status = self.get(LSR)
            if source is InterruptSource.MODEM_STATUS:
                self.get(MSR)
            if status & HOLDING_EMPTY:
                self._fill()
        return served

    def _fill(self) -> None:
        for byte in self.waiting[:FIFO_DEPTH]:
            self.put(DATA, byte)
        del self.waiting[:FIFO_DEPTH]
        if not self.waiting:
            self.put(IER, ENABLE_ALL & ~2)

    def run(self, microseconds: int = 1000) -> list[InterruptSource]:
        """Let time pass and handle the interrupts that come."""
        served: list[InterruptSource] = []
        for _ in range(microseconds // 50):
            self.device.clock.advance(50_000)
            if self.interrupts():
                served += self.handle()
        return served
