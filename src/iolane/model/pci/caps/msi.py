"""MSI (PCI Express Base 6.0, 7.7.1 and 6.1.4)."""

from __future__ import annotations

from collections.abc import Mapping
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
    RegisterMap,
    RegisterSpec,
    register,
)
from iolane.model.reset import ResetKind

MAX_VECTORS = 32


class MsiControl(Register16):
    """Message Control (7.7.1.2)."""

    ENABLE = Field(0)
    MULTIPLE_CAPABLE = Field(3, 1, access="ro", doc="2 ** value vectors asked for")
    MULTIPLE_ENABLE = Field(6, 4, doc="2 ** value vectors granted")
    ADDRESS_64 = Field(7, access="ro")
    PER_VECTOR_MASK = Field(8, access="ro")


class MsiRegisters(RegisterMap):
    """What every form of the capability begins with. `msi_registers` adds the rest."""

    CAPABILITY_ID = register(0x0, Register8, access="ro")
    NEXT = register(0x1, Register8, access="ro")
    CONTROL = register(0x2, MsiControl)
    ADDRESS = register(0x4, Register32)


@cache
def msi_registers(address64: bool, per_vector_mask: bool) -> type[MsiRegisters]:
    """The four forms of the capability (7.7.1, figures)."""
    members = {}
    data = 0x8
    if address64:
        members["UPPER_ADDRESS"] = register(0x8, Register32)
        data = 0xC
    rest = {"DATA": register(data, Register16)}
    if per_vector_mask:
        rest_wide = {
            "MASK": register(data + 4, Register32),
            "PENDING": register(data + 8, Register32, access="ro"),
        }
    else:
        rest_wide = {}
    return type("MsiRegisters", (MsiRegisters,), {**members, **rest, **rest_wide})


class MsiCapability(BoundCapability):
    """MSI of one device. Vectors beyond those the guest granted fold onto them (vector modulo granted). A
    vector that is raised while it cannot be delivered stays pending and is delivered exactly once when it
    can.
    """

    id = CapabilityId.MSI
    registers: MsiRegisters

    def __init__(self, declaration: Msi, interrupts: Interrupts) -> None:
        self._address64 = declaration.address64
        self._maskable = declaration.per_vector_mask
        super().__init__(msi_registers(self._address64, self._maskable)())
        self.vectors = declaration.vectors
        self._data_offset = 0xC if self._address64 else 0x8
        self._interrupts = interrupts
        self._pending_store = memoryview(bytearray(8))
        self.registers.hook_write(MsiRegisters.CONTROL, lambda _: self.flush())
        if self._maskable:
            mask: RegisterSpec[Register32] = vars(type(self.registers))["MASK"]
            self.registers.hook_write(mask, lambda _: self.flush())

    @property
    def enabled(self) -> bool:
        """MSI Enable as the guest wrote it."""
        return bool(self.registers.CONTROL.ENABLE)

    @property
    def granted(self) -> int:
        """Vectors the guest granted; 1 until it says otherwise."""
        granted = 1 << self.registers.CONTROL.MULTIPLE_ENABLE
        return min(granted, self.vectors)

    @property
    def pending(self) -> int:
        """Vectors raised and not delivered, a bit each."""
        return int.from_bytes(self._pending_store, "little")

    @pending.setter
    def pending(self, bits: int) -> None:
        self._pending_store[:] = bits.to_bytes(8, "little")
        if self._maskable:
            self.registers.store(self._data_offset + 8, 4, bits & 0xFFFF_FFFF)

    def raise_vector(self, vector: int) -> None:
        """Deliver `vector`, or make it pending. Raises `ValueError` for a negative vector."""
        if vector < 0:
            raise ValueError(f"vector {vector} was raised")
        vector %= self.vectors
        if self._deliverable(vector % self.granted):
            self._send(vector % self.granted)
        else:
            self.pending |= 1 << vector

    def _deliverable(self, vector: int) -> bool:
        mask = self.registers.load(self._data_offset + 4, 4) if self._maskable else 0
        return self._interrupts.sendable(
            InterruptIndex.MSI, vector, enabled=self.enabled, masked=bool(mask >> vector & 1)
        )

    def _send(self, vector: int) -> None:
        address = int(self.registers.ADDRESS)
        if self._address64:
            address |= self.registers.load(0x8, 4) << 32
        data = self.registers.load(self._data_offset, 2) & ~(self.granted - 1) | vector
        self._interrupts.send(InterruptIndex.MSI, MsiMessage(address, data, vector))

    def flush(self) -> None:
        """Deliver every pending vector that can be delivered now."""
        waiting = self.pending
        for vector in range(self.vectors):
            if waiting >> vector & 1 and self._deliverable(vector % self.granted):
                self.pending &= ~(1 << vector)
                self._send(vector % self.granted)

    def connected(self, vector: int) -> None:
        """The carrier connected or unmasked `vector`."""
        self.flush()

    def reset(self, kind: ResetKind) -> None:
        super().reset(kind)
        self.pending = 0

    def fill(self) -> None:
        self.registers.CONTROL = self.registers.CONTROL.replace(
            MULTIPLE_CAPABLE=self.vectors.bit_length() - 1,
            ADDRESS_64=self._address64,
            PER_VECTOR_MASK=self._maskable,
        )

    def loaded(self) -> None:
        super().loaded()
        self.pending &= (1 << self.vectors) - 1

    def storages(self) -> Mapping[str, memoryview]:
        return {"msi.pending": self._pending_store}


class Msi(Capability[MsiCapability]):
    """Declare MSI. On a device the attribute is its `Interrupts`, as with `Msix`.

    Args:
        vectors: 1, 2, 4, 8, 16 or 32.
        address64: the 64-bit form.
        per_vector_mask: mask and pending registers.
    """

    def __init__(self, vectors: int = 1, *, address64: bool = True, per_vector_mask: bool = True) -> None:
        if vectors not in (1, 2, 4, 8, 16, 32):
            raise TypeError(f"MSI has 1, 2, 4, 8, 16 or 32 vectors, not {vectors}")
        self.vectors = vectors
        self.address64 = address64
        self.per_vector_mask = per_vector_mask

    def bind(self, function: Owner) -> MsiCapability:
        return MsiCapability(self, function.interrupts)

    @overload  # type: ignore[override]  # the attribute is for raising vectors, whatever the presentation
    def __get__(self, function: None, owner: type) -> Self: ...
    @overload
    def __get__(self, function: Owner, owner: type) -> Interrupts: ...
    def __get__(self, function: Owner | None, owner: type) -> Self | Interrupts:
        return self if function is None else function.interrupts
