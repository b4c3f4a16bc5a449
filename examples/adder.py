"""A device on one screen. Run it: iolane run --device examples/adder.py:Adder"""

from iolane import Bar, Field, Msix, PciDevice, Register32, RegisterMap, register


class Control(Register32):
    START = Field(0)


class AdderRegisters(RegisterMap):
    A = register(0x00, Register32)
    B = register(0x04, Register32)
    SUM = register(0x08, Register32, access="ro")
    CONTROL = register(0x0C, Control, access="wo")


class Adder(PciDevice):
    """Adds A and B when CONTROL.START is written, then raises vector 0."""

    vendor_id, device_id, class_code = 0x1234, 0x11AD, 0xFF0000
    bar0 = Bar(AdderRegisters)
    msix = Msix(vectors=1)

    @bar0.on_write(AdderRegisters.CONTROL)
    def start(self, control: Control) -> None:
        if control.START:
            self.bar0.SUM = self.bar0.A + self.bar0.B
            self.msix.raise_vector(0)
