"""A device for the trace tests."""

from __future__ import annotations

from enum import IntEnum

from iolane.model.pci import Bar, MemoryPart, Msix, PciDevice
from iolane.model.region import Region
from iolane.model.registers import Field, Register8, Register32, RegisterMap, register, register_array
from iolane.model.trace import Tracer


class Mode(IntEnum):
    ADD = 0
    SUBTRACT = 1


class Control(Register32):
    START = Field(0)
    MODE = Field(3, 1, values=Mode)
    TAG = Field(15, 8)


class Status(Register8):
    BUSY = Field(0)
    ERROR = Field(7, access="w1c")


class Registers(RegisterMap):
    A = register(0x00, Register32)
    B = register(0x04, Register32)
    SUM = register(0x08, Register32, access="ro")
    CONTROL = register(0x0C, Control)
    STATUS = register(0x10, Status, reset=1)
    DOORBELL = register_array(0x20, Register32, 4)


class Adder(PciDevice):
    device_id = 0x11AD
    bar0 = Bar(Registers, size=0x4000, memory=(MemoryPart(0x2000, 0x1000),))
    msix = Msix(vectors=4)

    @bar0.on_write(Registers.CONTROL)
    def start(self, control: Control) -> None:
        if control.START:
            self.bar0.SUM = self.bar0.A + self.bar0.B
            self.msix.raise_vector(0)

    @bar0.on_write(Registers.DOORBELL)
    def ring(self, index: int, value: Register32) -> None:
        self.bar0.SUM = index << 16 | value
        if value == 0xBAD:
            raise RuntimeError("planned")


def bar0(device: PciDevice) -> Region:
    region = device.regions[0]
    assert region is not None
    return region


def dispatch(device: PciDevice) -> list[tuple[object, object]]:
    """The callables that a carrier finds."""
    return [(region.read, region.write) for region in device.regions if region is not None]


def same(one: list[tuple[object, object]], other: list[tuple[object, object]]) -> bool:
    return all(a is c and b is d for (a, b), (c, d) in zip(one, other, strict=True))


def texts(tracer: Tracer) -> list[str]:
    """The recent events without time and device."""
    return [event.text()[13:].partition(" ")[2] for event in tracer.recent]
