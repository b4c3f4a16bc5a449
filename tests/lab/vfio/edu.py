"""edu from Python over VFIO."""

from __future__ import annotations

from iolane.carriers.vfio import Vectors, VfioFunction
from iolane.devices.edu import BUFFER, INTERRUPT_DMA, DmaCommand, EduRegisters
from iolane.uapi.vfio import PciIrq


class Edu:
    """The device with its one MSI."""

    def __init__(self, function: VfioFunction) -> None:
        function.set_command()
        self.function = function
        self.registers = function.registers(0, EduRegisters)
        self.msi = Vectors(function, PciIrq.MSI)

    def raise_interrupt(self, cause: int) -> bool:
        self.registers.RAISE = cause
        came = self.msi.wait() == 1 and int(self.registers.INTERRUPT_STATUS) == cause
        self.registers.ACKNOWLEDGE = cause
        return came

    def to_device(self, iova: int, count: int) -> bool:
        """Copy memory into the device's buffer. Whether it says that it is done."""
        return self._transfer(iova, BUFFER, count, DmaCommand.make(START=1, INTERRUPT=1))

    def to_memory(self, iova: int, count: int) -> bool:
        """Copy the device's buffer into memory."""
        return self._transfer(BUFFER, iova, count, DmaCommand.make(START=1, INTERRUPT=1, TO_MEMORY=1))

    def _transfer(self, source: int, destination: int, count: int, command: DmaCommand) -> bool:
        registers = self.registers
        registers.DMA_SOURCE = source
        registers.DMA_DESTINATION = destination
        registers.DMA_COUNT = count
        registers.DMA_COMMAND = command
        done = self.msi.wait() == 1
        registers.ACKNOWLEDGE = INTERRUPT_DMA
        return done and not registers.DMA_COMMAND.START
