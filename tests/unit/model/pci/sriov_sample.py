"""A physical function with VFs of every kind of BAR, for the tests of SR-IOV."""

from __future__ import annotations

from iolane.model.pci import Bar, BarKind, Msix, PhysicalFunction, Sriov, VirtualFunction
from iolane.model.registers import Register32, RegisterMap, register

TOTAL = 5
FIRST, STRIDE = 2, 3


class Registers(RegisterMap):
    VALUE = register(0x0, Register32)


class SampleVf(VirtualFunction):
    device_id, class_code, subsystem_id = 0x5679, 0x020000, 0x77
    bar0 = Bar(Registers, kind=BarKind.MEM64, prefetchable=True, size=0x4000)
    bar2 = Bar(Registers)
    msix = Msix(2)

    written = 0

    @bar0.on_write(Registers.VALUE)
    def value(self, value: Register32) -> None:
        self.written += 1


class SamplePf(PhysicalFunction):
    vendor_id, device_id, class_code = 0x1234, 0x5678, 0x020000
    bar0 = Bar(Registers)
    sriov = Sriov(SampleVf, total=TOTAL, first_offset=FIRST, stride=STRIDE)

    changes = 0

    def on_vfs_changed(self) -> None:
        self.changes += 1
