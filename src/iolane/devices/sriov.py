"""sriov: an adder that is shared out by SR-IOV. The physical function limits and watches its virtual
functions, each of which adds, and copies memory by DMA.

A VF's first four registers are those of `examples/adder.py`, so that the same Linux driver works for both.
"""

from __future__ import annotations

from enum import IntEnum

from iolane.model.dma import DmaFault
from iolane.model.pci import Bar, Msix, PhysicalFunction, Sriov, VirtualFunction
from iolane.model.registers import Field, Register32, Register64, RegisterMap, register, register_array
from iolane.model.reset import ResetKind

TOTAL_VFS = 4
COPY_LIMIT = 64 << 10
"""Bytes that one copy of a VF may have, unless its PF says less."""


class CopyResult(IntEnum):
    """What became of the last copy."""

    NONE = 0
    DONE = 1
    REFUSED = 2
    """Longer than the PF allows."""
    FAULT = 3
    """Memory that the VF must not reach."""


class Control(Register32):
    """Starts work; vector 0 is raised when it is done."""

    ADD = Field(0, doc="SUM = A + B")
    COPY = Field(1, doc="COUNT bytes from SOURCE to DESTINATION")


class Result(Register32):
    """The last copy."""

    CODE = Field(1, 0, values=CopyResult)


class VirtualAdderRegisters(RegisterMap):
    """BAR 0 of a VF."""

    A = register(0x00, Register32)
    B = register(0x04, Register32)
    SUM = register(0x08, Register32, access="ro")
    CONTROL = register(0x0C, Control, access="wo")
    NUMBER = register(0x10, Register32, access="ro", doc="of this VF, from 0")
    LIMIT = register(0x14, Register32, access="ro", doc="bytes that a copy may have")
    WORK = register(0x18, Register32, access="ro", doc="additions and copies since the last reset")
    RESULT = register(0x1C, Result, access="ro")
    SOURCE = register(0x20, Register64)
    DESTINATION = register(0x28, Register64)
    COUNT = register(0x30, Register32)


class SharedAdderRegisters(RegisterMap):
    """BAR 0 of the PF."""

    VFS = register(0x00, Register32, access="ro", doc="VFs that exist")
    LIMIT = register_array(
        0x40, Register32, TOTAL_VFS, reset=COPY_LIMIT, doc="bytes a copy of the VF may have"
    )
    WORK = register_array(0x80, Register32, TOTAL_VFS, access="ro", doc="what the VF has done")


class VirtualAdder(VirtualFunction):
    """A share of the adder."""

    device_id, class_code = 0x11AF, 0xFF0000
    bar0 = Bar(VirtualAdderRegisters)
    msix = Msix(vectors=1)

    def __init__(self, *, number: int = 0, name: str | None = None) -> None:
        super().__init__(number=number, name=name)
        self._limit = COPY_LIMIT
        self._show_constants()

    def limit(self, size: int) -> None:
        """The PF's word on how many bytes a copy may have."""
        with self.lock:
            self._limit = size
            self._show_constants()

    @property
    def work(self) -> int:
        """Additions and copies since the last reset."""
        with self.lock:
            return int(self.bar0.WORK)

    def _show_constants(self) -> None:
        self.bar0.NUMBER, self.bar0.LIMIT = self.number, self._limit

    @bar0.on_write(VirtualAdderRegisters.CONTROL)
    def start(self, control: Control) -> None:
        bar = self.bar0
        if control.ADD:
            bar.SUM = bar.A + bar.B
        if control.COPY:
            bar.RESULT = self._copy()
        if control:
            bar.WORK = bar.WORK + 1
            self.msix.raise_vector(0)

    def _copy(self) -> CopyResult:
        bar = self.bar0
        count = int(bar.COUNT)
        if count > self._limit:
            self.counters.add("copies_refused")
            return CopyResult.REFUSED
        try:
            self.dma.write(bar.DESTINATION, self.dma.read(bar.SOURCE, count))
        except DmaFault:
            self.counters.add("copies_failed")
            return CopyResult.FAULT
        return CopyResult.DONE

    def on_reset(self, kind: ResetKind) -> None:
        self._show_constants()

    def on_load(self) -> None:
        self._show_constants()


class SharedAdder(PhysicalFunction):
    """An adder shared out by SR-IOV: each of up to 4 virtual functions adds and copies, within limits."""

    vendor_id, device_id, class_code = 0x1234, 0x11AE, 0xFF0000
    bar0 = Bar(SharedAdderRegisters)
    sriov = Sriov(VirtualAdder, total=TOTAL_VFS)

    @bar0.on_read(SharedAdderRegisters.VFS)
    def count_vfs(self, stored: Register32) -> int:
        return len(self.sriov.present)

    @bar0.on_read(SharedAdderRegisters.WORK)
    def watch(self, number: int, stored: Register32) -> int:
        return self.sriov.all[number].work

    @bar0.on_write(SharedAdderRegisters.LIMIT)
    def limit(self, number: int, size: Register32) -> None:
        """A limit holds from the next copy on, and never beyond what the adder can do."""
        self.bar0.LIMIT[number] = min(size, COPY_LIMIT)
        self.sriov.all[number].limit(int(self.bar0.LIMIT[number]))

    def _tell_limits(self) -> None:
        for number, size in enumerate(self.bar0.LIMIT):
            self.limit(number, size)

    def on_reset(self, kind: ResetKind) -> None:
        self._tell_limits()

    def on_load(self) -> None:
        self._tell_limits()
