"""What every driver does with a PCI function, over the device itself: the in-memory side of a guest."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Generic, Self, TypeVar

from iolane.model.interrupts import InterruptIndex, InterruptMode
from iolane.model.pci import Command, MsiCapability, MsixCapability, PciDevice, Type0Header

D = TypeVar("D", bound=PciDevice)

MEMORY_START = 0x10_0000
KINDS = {
    InterruptMode.MSIX: InterruptIndex.MSIX,
    InterruptMode.MSI: InterruptIndex.MSI,
    InterruptMode.INTX: InterruptIndex.INTX,
}


class FunctionDriver(Generic[D]):
    """Enables a function, gives it memory and takes its interrupts. Derived classes drive one kind of device.

    Args:
        device: the device, without a carrier.
        interrupts: the kind to enable; by default the best it has.
        memory: bytes of memory to map for DMA at `MEMORY_START`; 0 for none.
    """

    def __init__(self, device: D, *, interrupts: InterruptMode | None = None, memory: int = 1 << 20) -> None:
        self.device = device
        self.memory = memoryview(bytearray(memory))
        if memory:
            device.dma.map(MEMORY_START, memory, buffer=self.memory)
        self.mode = self._best() if interrupts is None else interrupts
        self._eventfds: list[int] = []
        self.enable()

    def _best(self) -> InterruptMode:
        if self.device.interrupts.msix is not None:
            return InterruptMode.MSIX
        if self.device.interrupts.msi is not None:
            return InterruptMode.MSI
        return InterruptMode.NONE if self.device.interrupts.line is None else InterruptMode.INTX

    def enable(self) -> None:
        """What `pci_enable_device`, `pci_set_master` and `pci_alloc_irq_vectors` do; again after a reset."""
        command = Command.make(IO=1, MEMORY=1, BUS_MASTER=1, INTX_DISABLE=self.mode is not InterruptMode.INTX)
        offset = Type0Header.COMMAND.offset
        with self.device.lock:
            self.device.config.write(offset, 2, command)
            for capability in self.device.config.capabilities:
                if isinstance(capability, MsiCapability) and self.mode is InterruptMode.MSI:
                    control = capability.registers.CONTROL
                    wanted = control.replace(ENABLE=1, MULTIPLE_ENABLE=control.MULTIPLE_CAPABLE)
                    self.device.config.write(capability.offset + 2, 2, wanted)
                elif isinstance(capability, MsixCapability) and self.mode is InterruptMode.MSIX:
                    for vector in range(capability.vectors):
                        capability.table.write(16 * vector + 12, 4, 0)  # Vector Control: not masked
                    self.device.config.write(capability.offset + 2, 2, 0x8000)
            self._connect()

    def _connect(self) -> None:
        if self._eventfds or self.mode not in KINDS:
            return
        group = self.device.interrupts.group(KINDS[self.mode])
        for vector in range(group.count):
            self._eventfds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            group.connect(vector, os.dup(self._eventfds[-1]))

    def read(self, offset: int, size: int, *, bar: int = 0) -> int:
        """Read a BAR, as a trap does."""
        region = self.device.regions[bar]
        assert region is not None
        with self.device.lock:
            return region.read(offset, size)

    def write(self, offset: int, size: int, value: int, *, bar: int = 0) -> None:
        """Write a BAR, as a trap does."""
        region = self.device.regions[bar]
        assert region is not None
        with self.device.lock:
            region.write(offset, size, value)

    def interrupts(self, vector: int = 0) -> int:
        """Interrupts of `vector` since the last call. An INTx line is then unmasked, as handlers do."""
        try:
            count = os.eventfd_read(self._eventfds[vector])
        except BlockingIOError:
            return 0
        if self.mode is InterruptMode.INTX:
            with self.device.lock:
                self.device.interrupts.group(InterruptIndex.INTX).unmask(0)
        return count

    @property
    def descriptors(self) -> list[int]:
        """The interrupts' eventfds by vector, for `select.poll`."""
        return list(self._eventfds)

    @property
    def line(self) -> bool:
        """Whether the INTx line is asserted."""
        return self.device.interrupts.intx.level

    def close(self) -> None:
        """Close the device and the interrupts' eventfds."""
        self.device.close()
        self._close_eventfds()

    def _close_eventfds(self) -> None:
        for fd in self._eventfds:
            os.close(fd)
        self._eventfds.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
