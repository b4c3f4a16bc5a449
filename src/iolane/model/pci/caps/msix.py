"""MSI-X (PCI Express Base 6.0, 7.7.2 and 6.1.4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Self, overload

from iolane.model.interrupts import InterruptIndex, Interrupts, MsiMessage
from iolane.model.pci.capability import BoundCapability, Capability, CapabilityId
from iolane.model.pci.owner import Owner
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
from iolane.model.reset import ResetKind

MAX_VECTORS = 2048
ENTRY_SIZE = 16


class MsixControl(Register16):
    """Message Control (7.7.2.2)."""

    TABLE_SIZE = Field(10, 0, access="ro", doc="vectors - 1")
    FUNCTION_MASK = Field(14, doc="masks every vector")
    ENABLE = Field(15)


class MsixPlace(Register32):
    """Where the table or the pending bits are (7.7.2.3, 7.7.2.4)."""

    BIR = Field(2, 0, doc="the BAR")
    OFFSET = Field(31, 3, doc="in units of 8 bytes")


class MsixRegisters(RegisterMap):
    """The capability's registers."""

    CAPABILITY_ID = register(0x0, Register8, access="ro")
    NEXT = register(0x1, Register8, access="ro")
    CONTROL = register(0x2, MsixControl)
    TABLE = register(0x4, MsixPlace, access="ro")
    PBA = register(0x8, MsixPlace, access="ro")


class VectorControl(Register32):
    """Vector Control of a table entry (7.7.2.8)."""

    MASK = Field(0, reset=1)


class MsixTable(RegisterMap):
    """The table: an entry of 16 bytes for each vector (7.7.2.5). `msix_table` makes one of the right
    length.
    """

    ADDRESS = register_array(0x0, Register64, 1, stride=ENTRY_SIZE)
    DATA = register_array(0x8, Register32, 1, stride=ENTRY_SIZE)
    CONTROL = register_array(0xC, VectorControl, 1, stride=ENTRY_SIZE)


class MsixPending(RegisterMap):
    """The pending bit array, 64 vectors a word (7.7.2.9). `msix_pending` makes one of the right length."""

    PENDING = register_array(0x0, Register64, 1, access="ro")


@cache
def msix_table(vectors: int) -> type[MsixTable]:
    """The table class for a number of vectors."""
    members = {
        "ADDRESS": register_array(0x0, Register64, vectors, stride=ENTRY_SIZE),
        "DATA": register_array(0x8, Register32, vectors, stride=ENTRY_SIZE),
        "CONTROL": register_array(0xC, VectorControl, vectors, stride=ENTRY_SIZE),
    }
    return type(f"MsixTable{vectors}", (MsixTable,), members)


@cache
def msix_pending(vectors: int) -> type[MsixPending]:
    """The pending bit array class for a number of vectors."""
    words = -(-vectors // 64)
    members = {"PENDING": register_array(0x0, Register64, words, access="ro")}
    return type(f"MsixPending{vectors}", (MsixPending,), members)


class MsixCapability(BoundCapability):
    """MSI-X of one device. A vector that is raised while it cannot be delivered sets its pending bit, and is
    delivered exactly once when it can (6.1.4.3). State is in the registers alone: masks in the table,
    pending bits in the PBA.
    """

    id = CapabilityId.MSIX
    registers: MsixRegisters

    def __init__(self, declaration: Msix, interrupts: Interrupts, bar: int, table: int, pba: int) -> None:
        super().__init__(MsixRegisters())
        self.vectors = declaration.vectors
        self.bar = bar
        self.table_offset = table
        self.pba_offset = pba
        self.table = msix_table(self.vectors)()
        self.pba = msix_pending(self.vectors)()
        self._interrupts = interrupts
        self.registers.hook_write(MsixRegisters.CONTROL, lambda _: self.flush())
        self.table.hook_write(type(self.table).CONTROL, self._vector_control)

    @property
    def enabled(self) -> bool:
        """MSI-X Enable as the guest wrote it."""
        return bool(self.registers.CONTROL.ENABLE)

    def raise_vector(self, vector: int) -> None:
        """Deliver `vector`, or set its pending bit. Raises `ValueError` for a vector the device does not
        have.
        """
        if not 0 <= vector < self.vectors:
            raise ValueError(f"vector {vector} was raised, the device has {self.vectors}")
        if self._deliverable(vector):
            self._send(vector)
        else:
            word = vector // 64
            self.pba.PENDING[word] = self.pba.PENDING[word] | 1 << vector % 64

    def _deliverable(self, vector: int) -> bool:
        control = self.registers.CONTROL
        masked = bool(control.FUNCTION_MASK) or bool(self.table.CONTROL[vector].MASK)
        return self._interrupts.sendable(
            InterruptIndex.MSIX, vector, enabled=bool(control.ENABLE), masked=masked
        )

    def _send(self, vector: int) -> None:
        message = MsiMessage(self.table.ADDRESS[vector], self.table.DATA[vector], vector)
        self._interrupts.send(InterruptIndex.MSIX, message)

    def is_pending(self, vector: int) -> bool:
        """The pending bit of `vector`."""
        return bool(self.pba.PENDING[vector // 64] >> vector % 64 & 1)

    def _pending(self) -> Iterator[int]:
        for index, word in enumerate(self.pba.PENDING):
            bits = int(word)
            while bits:
                lowest = bits & -bits
                yield 64 * index + lowest.bit_length() - 1
                bits ^= lowest

    def _retry(self, vector: int) -> None:
        if self.is_pending(vector) and self._deliverable(vector):
            word = vector // 64
            self.pba.PENDING[word] = self.pba.PENDING[word] & ~(1 << vector % 64)
            self._send(vector)

    def flush(self) -> None:
        """Deliver every pending vector that can be delivered now."""
        for vector in self._pending():
            self._retry(vector)

    def _vector_control(self, vector: int, control: VectorControl) -> None:
        if not control.MASK:
            self._retry(vector)

    def connected(self, vector: int) -> None:
        """The carrier connected or unmasked `vector`."""
        self._retry(vector)

    def reset(self, kind: ResetKind) -> None:
        super().reset(kind)
        self.table.reset()
        self.pba.reset()

    def fill(self) -> None:
        registers = self.registers
        registers.CONTROL = registers.CONTROL.replace(TABLE_SIZE=self.vectors - 1)
        registers.TABLE = self.table_offset | self.bar
        registers.PBA = self.pba_offset | self.bar

    def loaded(self) -> None:
        super().loaded()
        last = len(self.pba.PENDING) - 1
        self.pba.PENDING[last] = self.pba.PENDING[last] & ((1 << self.vectors - 64 * last) - 1)

    def storages(self) -> Mapping[str, memoryview]:
        return {"msix.table": self.table.storage, "msix.pba": self.pba.storage}


class Msix(Capability[MsixCapability]):
    """Declare MSI-X. On a device the attribute is its `Interrupts`: `self.msix.raise_vector(0)` works in
    every presentation; the bound capability is `self.interrupts.msix`.

    Args:
        vectors: 1 to 2048.
        bar: index of the BAR that holds table and pending bits; left out, they get a BAR of their own.
        table, pba: their offsets in that BAR, multiples of 8.
    """

    def __init__(
        self, vectors: int, *, bar: int | None = None, table: int = 0, pba: int | None = None
    ) -> None:
        if not 1 <= vectors <= MAX_VECTORS:
            raise TypeError(f"MSI-X has 1 to {MAX_VECTORS} vectors, not {vectors}")
        self.vectors = vectors
        self.bar = bar
        self.table = table
        end_of_table = table + ENTRY_SIZE * vectors
        self.pba = -(-end_of_table // 8) * 8 if pba is None else pba
        if self.table % 8 or self.pba % 8:
            raise TypeError("MSI-X table and PBA offsets are multiples of 8 (7.7.2.3)")

    @property
    def end(self) -> int:
        """The first byte after table and pending bits in their BAR."""
        return max(self.table + ENTRY_SIZE * self.vectors, self.pba + 8 * -(-self.vectors // 64))

    def bind(self, function: Owner) -> MsixCapability:
        return MsixCapability(self, function.interrupts, function.msix_bar(self), self.table, self.pba)

    @overload  # type: ignore[override]  # the attribute is for raising vectors, whatever the presentation
    def __get__(self, function: None, owner: type) -> Self: ...
    @overload
    def __get__(self, function: Owner, owner: type) -> Interrupts: ...
    def __get__(self, function: Owner | None, owner: type) -> Self | Interrupts:
        return self if function is None else function.interrupts
