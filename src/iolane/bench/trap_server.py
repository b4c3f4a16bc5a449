"""The iolane side of `iolane bench trap`: a register map, one register without hooks and one with.

Run as `python -m iolane.bench.trap_server SOCKET`; says `ready`, serves until its standard input ends.
"""

from __future__ import annotations

import sys

from iolane.carriers.vfio_user import VfioUserServer
from iolane.model.pci import Bar, PciDevice
from iolane.model.registers import Register32, RegisterMap, register


class MeasuredRegisters(RegisterMap):
    """What is read and written."""

    PLAIN = register(0x0, Register32)
    HOOKED = register(0x4, Register32)


class Measured(PciDevice):
    """Does as little as a device with hooks in Python can."""

    vendor_id, device_id, class_code = 0x1234, 0x7A90, 0xFF0000
    bar0 = Bar(MeasuredRegisters)

    def __init__(self) -> None:
        super().__init__()
        self.written = 0

    @bar0.on_read(MeasuredRegisters.HOOKED)
    def read_hooked(self, value: Register32) -> int:
        return value + 1

    @bar0.on_write(MeasuredRegisters.HOOKED)
    def write_hooked(self, value: Register32) -> None:
        self.written = value


def main(path: str) -> None:
    """Serve until whoever started this closes our standard input."""
    with VfioUserServer(Measured(), path):
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
