"""A driver of edu, over the device itself."""

from __future__ import annotations

from typing import Any

from iolane.devices.edu import (
    BUFFER,
    INTERRUPT_DMA,
    INTERRUPT_FACTORIAL,
    DmaCommand,
    Edu,
    EduRegisters,
    Status,
)
from iolane.model.registers import RegisterSpec
from iolane.testing.drivers.function import MEMORY_START, FunctionDriver


class EduDriver(FunctionDriver[Edu]):
    """Does with edu what `examples/edu_driver` does in a Linux guest."""

    def get(self, register: RegisterSpec[Any]) -> int:
        """Read a register by name."""
        return self.read(register.offset, register.width)

    def put(self, register: RegisterSpec[Any], value: int) -> None:
        """Write a register by name."""
        self.write(register.offset, register.width, value)

    def factorial(self, operand: int) -> int:
        """The factorial, completed by an interrupt."""
        self.put(EduRegisters.STATUS, Status.make(INTERRUPT=1))
        self.put(EduRegisters.FACTORIAL, operand)
        self.take(INTERRUPT_FACTORIAL)
        assert not self.get(EduRegisters.STATUS) & 1
        return self.get(EduRegisters.FACTORIAL)

    def take(self, cause: int) -> None:
        """The interrupt handler: there is one interrupt, about `cause`, and it is acknowledged."""
        assert self.interrupts() == 1
        assert self.get(EduRegisters.INTERRUPT_STATUS) == cause
        self.put(EduRegisters.ACKNOWLEDGE, cause)
        assert self.get(EduRegisters.INTERRUPT_STATUS) == 0

    def to_device(self, offset: int, count: int, *, at: int = 0) -> None:
        """Copy `count` bytes of memory at `offset` into the buffer at `at`."""
        self.transfer(MEMORY_START + offset, BUFFER + at, count, DmaCommand.make(START=1, INTERRUPT=1))

    def to_memory(self, offset: int, count: int, *, at: int = 0) -> None:
        """Copy `count` bytes of the buffer at `at` into memory at `offset`."""
        command = DmaCommand.make(START=1, INTERRUPT=1, TO_MEMORY=1)
        self.transfer(BUFFER + at, MEMORY_START + offset, count, command)

    def transfer(self, source: int, destination: int, count: int, command: int) -> None:
        """One transfer, completed by an interrupt."""
        self.start(source, destination, count, command)
        self.device.clock.advance(self.device.dma_ns)
        self.take(INTERRUPT_DMA)

    def start(self, source: int, destination: int, count: int, command: int) -> None:
        """Start a transfer and let it be."""
        self.put(EduRegisters.DMA_SOURCE, source)
        self.put(EduRegisters.DMA_DESTINATION, destination)
        self.put(EduRegisters.DMA_COUNT, count)
        self.put(EduRegisters.DMA_COMMAND, command)
