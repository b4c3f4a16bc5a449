"""edu from Python over VFIO."""

from __future__ import annotations

import os
import select
from pathlib import Path

from iolane.carriers.vfio import Vectors, VfioFunction
from iolane.carriers.vfio.passed_irqs import PassedInterrupts
from iolane.devices.edu import BUFFER, INTERRUPT_DMA, DmaCommand, EduRegisters
from iolane.model.interrupts import InterruptIndex
from iolane.uapi.vfio import PciIrq

QUIET_S = 0.5
"""How long nothing must come."""
WAIT_S = 20.0


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


class Line:
    """edu's INTx, connected as KVM would be: an eventfd that is signalled, and one that unmasks when the
    guest ends its interrupt.
    """

    def __init__(self, function: VfioFunction) -> None:
        function.set_command()
        self.name = f"vfio-intx({function.address})"
        self.registers = function.registers(0, EduRegisters)
        self.group = PassedInterrupts(function, InterruptIndex.INTX)
        self._signalled, self._resample = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
        self.group.connect(0, os.dup(self._signalled))
        self.group.connect_unmask(0, os.dup(self._resample))

    def came(self, seconds: float = WAIT_S) -> int:
        """Interrupts since the last call, waited for at most so long."""
        poll = select.poll()
        poll.register(self._signalled, select.POLLIN)
        return os.eventfd_read(self._signalled) if poll.poll(seconds * 1000) else 0

    def quiet(self) -> bool:
        return self.came(QUIET_S) == 0

    def end(self) -> None:
        """The guest ends its interrupt."""
        os.eventfd_write(self._resample, 1)

    def of_the_host(self) -> int:
        """How many interrupts the host's kernel has taken of it."""
        lines = Path("/proc/interrupts").read_text().splitlines()
        counted = next(line.split() for line in lines if line.endswith(self.name))
        return sum(int(word) for word in counted[1 : 1 + (os.cpu_count() or 1)])

    def close(self) -> None:
        self.group.disconnect_all()
        os.close(self._signalled)
        os.close(self._resample)
