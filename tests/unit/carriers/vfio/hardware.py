"""The hardware that tests pass through: registers, memory, DMA and interrupts, small."""

from __future__ import annotations

from collections.abc import Callable

from iolane.model.dma import DmaFault
from iolane.model.pci import Bar, Intx, Msix, PciDevice, PcieId, ResetKind
from iolane.model.region import Area
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

ADDRESS = PcieId(0, 1, 0, 0)
WINDOW = Area(0x1000, 0x1000)
"""Memory of BAR 0 that may be mapped."""
HOST_BAR = 0xFEBF_0000


class Command(Register32):
    WRITE = Field(0, doc="write DATA to memory")
    READ = Field(1, doc="read DATA from memory")
    RAISE = Field(2, doc="raise vector VECTOR")
    VECTOR = Field(15, 8)


class CardRegisters(RegisterMap):
    """BAR 0 of the card."""

    ID = register(0x00, Register32, access="ro", reset=0x10AD_1E55)
    COMMAND = register(0x04, Command)
    ADDRESS = register(0x08, Register64)
    DATA = register(0x10, Register64)
    SMALL = register(0x18, Register16)
    TINY = register(0x1A, Register8)
    FAULTS = register(0x1C, Register32, access="ro")
    SLOT = register_array(0x40, Register32, 4)


class Card(PciDevice):
    """Copies eight bytes to or from memory, and interrupts."""

    vendor_id, device_id, class_code = 0x1234, 0xCA4D, 0xFF0000
    bar0 = Bar(CardRegisters, size=0x4000)
    intx = Intx()
    msix = Msix(vectors=8)

    @bar0.on_write(CardRegisters.COMMAND)
    def run(self, command: Command) -> None:
        registers = self.bar0
        if command.WRITE:
            self._transfer(
                lambda: self.dma.write(registers.ADDRESS, int(registers.DATA).to_bytes(8, "little"))
            )
        if command.READ:
            self._transfer(self._fetch)
        if command.RAISE:
            self.interrupts.raise_vector(command.VECTOR)

    def _fetch(self) -> None:
        self.bar0.DATA = int.from_bytes(self.dma.read(self.bar0.ADDRESS, 8), "little")

    def _transfer(self, call: Callable[[], None]) -> None:
        try:
            call()
        except DmaFault:
            self.bar0.FAULTS = self.bar0.FAULTS + 1

    def on_reset(self, kind: ResetKind) -> None:
        self.bar0.SLOT[0] = 0x600D
