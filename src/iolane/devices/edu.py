"""edu: QEMU's educational device (QEMU's docs/specs/edu.rst; "edu:" below names its sections).

Identification, a liveness check, a factorial computed beside the guest, interrupts raised and acknowledged by
register, and a DMA engine with a buffer of 4096 bytes.
"""

from __future__ import annotations

from math import factorial
from typing import Annotated

import msgspec

from iolane.errors import IolaneError
from iolane.model.clock import Timer
from iolane.model.dma import DmaFault
from iolane.model.pci import Bar, Intx, Msi, PciDevice, Presentation
from iolane.model.registers import Field, Register32, Register64, RegisterMap, register
from iolane.model.reset import ResetKind
from iolane.model.state import DeviceState, StateError

BUFFER = 0x40000
"""DMA address of the device's own buffer (edu: DMA controller)."""
BUFFER_SIZE = 4096
INTERRUPT_FACTORIAL = 0x001
INTERRUPT_DMA = 0x100
FACTORIAL_VANISHES = 34
"""34! and every later factorial is a multiple of 2 ** 32: the register shows 0."""


class Identification(Register32):
    """0xRRrr00ed."""

    MAGIC = Field(15, 0, reset=0x00ED)
    MINOR = Field(23, 16)
    MAJOR = Field(31, 24, reset=1)


class Status(Register32):
    """What the factorial unit does."""

    COMPUTING = Field(0, access="ro")
    INTERRUPT = Field(7, doc="raise interrupt 0x1 when the factorial is done")


class DmaCommand(Register64):
    """Starts a transfer."""

    START = Field(0, doc="reads 1 until the transfer is done")
    TO_MEMORY = Field(1, doc="from the device's buffer to memory")
    INTERRUPT = Field(2, doc="raise interrupt 0x100 when the transfer is done")


class EduRegisters(RegisterMap):
    """The first 0xa0 bytes of BAR 0 (edu: MMIO area spec)."""

    IDENTIFICATION = register(0x00, Identification, access="ro")
    LIVENESS = register(0x04, Register32, doc="reads the inversion of what was written")
    FACTORIAL = register(0x08, Register32, doc="the operand, then its factorial modulo 2 ** 32")
    STATUS = register(0x20, Status)
    INTERRUPT_STATUS = register(0x24, Register32, access="ro", doc="what raised the interrupt")
    RAISE = register(0x60, Register32, access="wo", doc="bits to set in INTERRUPT_STATUS")
    ACKNOWLEDGE = register(0x64, Register32, access="wo", doc="bits to clear in INTERRUPT_STATUS")
    DMA_SOURCE = register(0x80, Register64)
    DMA_DESTINATION = register(0x88, Register64)
    DMA_COUNT = register(0x90, Register64)
    DMA_COMMAND = register(0x98, DmaCommand)

    def read(self, offset: int, size: int) -> int:
        """Accesses of another size read all ones, as nothing answers them."""
        return super().read(offset, size) if _allowed(offset, size) else (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Accesses of another size are ignored."""
        if _allowed(offset, size):
            super().write(offset, size, value)


def _allowed(offset: int, size: int) -> bool:
    """4 bytes below 0x80, 4 or 8 from there on, naturally aligned (edu: MMIO area spec)."""
    return offset % size == 0 and (size == 4 or (size == 8 and offset >= 0x80))


Unsigned = Annotated[int, msgspec.Meta(ge=0)]
Buffer = Annotated[bytes, msgspec.Meta(min_length=BUFFER_SIZE, max_length=BUFFER_SIZE)]


class Transfer(msgspec.Struct, forbid_unknown_fields=True):
    """A transfer under way, as the registers had it when it was started."""

    source: Unsigned
    destination: Unsigned
    count: Unsigned
    command: Unsigned
    remaining_ns: Unsigned


class EduState(DeviceState):
    """What edu remembers beside its registers."""

    buffer: Buffer = bytes(BUFFER_SIZE)
    transfer: Transfer | None = None


class Edu(PciDevice):
    """The educational device of QEMU.

    Args:
        dma_mask: address bits of the DMA engine; further bits of an address are ignored.
        dma_microseconds: how long a transfer takes.
    """

    vendor_id, device_id, class_code, revision_id = 0x1234, 0x11E8, 0x00FF00, 0x10
    bar0 = Bar(EduRegisters, size=1 << 20)
    msi = Msi(vectors=1, per_vector_mask=False)
    intx = Intx()

    State = EduState
    state: EduState

    def __init__(
        self,
        *,
        dma_mask: int = (1 << 28) - 1,
        dma_microseconds: int = 100,
        presentation: Presentation | str = Presentation.AUTO,
        name: str | None = None,
    ) -> None:
        if not 0 < dma_mask < 1 << 64:
            raise IolaneError(f"dma_mask is a mask of up to 64 bits, not {dma_mask:#x}")
        if dma_microseconds < 0:
            raise IolaneError("a transfer takes dma_microseconds=0 or more")
        super().__init__(presentation=presentation, name=name)
        self.dma_mask = dma_mask
        self.dma_ns = dma_microseconds * 1000
        self._timer: Timer | None = None

    @bar0.on_write(EduRegisters.LIVENESS)
    def check_liveness(self, value: Register32) -> None:
        self.bar0.LIVENESS = ~value

    # Factorial.

    @bar0.on_write(EduRegisters.FACTORIAL)
    def compute(self, operand: Register32) -> None:
        """Put the factorial back and clear COMPUTING when it is done; operands before that are lost."""
        if self.bar0.STATUS.COMPUTING:
            return
        self.bar0.STATUS = self.bar0.STATUS.replace(COMPUTING=1)
        self.tasks.run(lambda: _factorial(operand), self._computed, self._computed_nothing)

    def _computed(self, result: int) -> None:
        self.bar0.FACTORIAL = result
        self.bar0.STATUS = self.bar0.STATUS.replace(COMPUTING=0)
        if self.bar0.STATUS.INTERRUPT:
            self._raise(INTERRUPT_FACTORIAL)

    def _computed_nothing(self, error: BaseException) -> None:
        self.counters.add("factorials_failed")
        self._computed(0)

    # Interrupts (edu: IRQ controller).

    @bar0.on_write(EduRegisters.RAISE)
    def raise_as_written(self, cause: Register32) -> None:
        self._raise(cause)

    def _raise(self, cause: int) -> None:
        status = self.bar0.INTERRUPT_STATUS | cause
        self.bar0.INTERRUPT_STATUS = status
        if status:
            self.msi.raise_vector(0)

    @bar0.on_write(EduRegisters.ACKNOWLEDGE)
    def acknowledge(self, cause: Register32) -> None:
        status = self.bar0.INTERRUPT_STATUS & ~cause
        self.bar0.INTERRUPT_STATUS = status
        if not status:
            self.intx.set_level(False)

    # DMA (edu: DMA controller).

    @bar0.on_write(EduRegisters.DMA_COMMAND)
    def start_transfer(self, command: DmaCommand) -> None:
        """Begin what the registers say; during a transfer the command register can't be changed."""
        if self.state.transfer is not None:
            self.bar0.DMA_COMMAND = DmaCommand(self.state.transfer.command)
        elif command.START:
            bar = self.bar0
            self.state.transfer = Transfer(
                source=int(bar.DMA_SOURCE),
                destination=int(bar.DMA_DESTINATION),
                count=int(bar.DMA_COUNT),
                command=int(command),
                remaining_ns=self.dma_ns,
            )
            self._timer = self.clock.call_after(self.dma_ns, self._finish_transfer)

    def _finish_transfer(self) -> None:
        transfer, self.state.transfer = self.state.transfer, None
        if transfer is None:
            return
        command = DmaCommand(transfer.command).replace(START=0)
        self.bar0.DMA_COMMAND = command
        try:
            self._move(transfer, command)
        except DmaFault:
            self.counters.add("dma_failed")
        if command.INTERRUPT:
            self._raise(INTERRUPT_DMA)

    def _move(self, transfer: Transfer, command: DmaCommand) -> None:
        """Copy between memory and buffer. A range that leaves the buffer moves nothing and is counted."""
        start = (transfer.source if command.TO_MEMORY else transfer.destination) - BUFFER
        end = start + transfer.count
        if start < 0 or end > BUFFER_SIZE:
            self.counters.add("dma_outside_buffer")
        elif command.TO_MEMORY:
            self.dma.write(transfer.destination & self.dma_mask, self.state.buffer[start:end])
        else:
            data = self.dma.read(transfer.source & self.dma_mask, transfer.count)
            self.state.buffer = self.state.buffer[:start] + data + self.state.buffer[end:]

    # State.

    def on_reset(self, kind: ResetKind) -> None:
        self.state = EduState()
        self._timer = None

    def on_save(self) -> None:
        if self.state.transfer is not None and self._timer is not None:
            self.state.transfer.remaining_ns = self._timer.remaining_ns

    def on_load(self) -> None:
        if self.bar0.STATUS.COMPUTING:
            raise StateError(f"{self.name}: a state is saved when no factorial is being computed")
        transfer = self.state.transfer
        if bool(self.bar0.DMA_COMMAND.START) != (transfer is not None):
            raise StateError(f"{self.name}: the transfer in the saved state contradicts its registers")
        if transfer is not None:
            self._timer = self.clock.call_after(transfer.remaining_ns, self._finish_transfer)


def _factorial(operand: int) -> int:
    return factorial(operand) & 0xFFFF_FFFF if operand < FACTORIAL_VANISHES else 0
