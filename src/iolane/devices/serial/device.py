"""A serial port on PCI (QEMU's docs/specs/pci-serial.rst): one 16550A behind an I/O BAR."""

from __future__ import annotations

from iolane.backends.stream import StreamBackend, open_stream
from iolane.devices.serial.registers import UartRegisters
from iolane.devices.serial.state import UartState
from iolane.devices.serial.uart import Uart
from iolane.model.pci import Bar, BarKind, Intx, PciDevice, Presentation
from iolane.model.reset import ResetKind


class PciSerial(PciDevice):
    """A 16550A serial port; Linux's 8250_pci makes it /dev/ttyS*.

    Args:
        stream: the other end of the line, a stream or its name: `pty[:LINK]`, `listen:PATH`, `unix:PATH`,
            `file:PATH`, `fd:N[:M]` or `null`.
    """

    vendor_id, device_id, class_code, revision_id = 0x1B36, 0x0002, 0x070002, 0x01
    subsystem_vendor_id, subsystem_id = 0x1AF4, 0x1100
    bar0 = Bar(UartRegisters, kind=BarKind.IO, size=8)
    intx = Intx()

    State = UartState
    state: UartState

    def __init__(
        self,
        stream: StreamBackend | str = "pty",
        *,
        presentation: Presentation | str = Presentation.AUTO,
        name: str | None = None,
    ) -> None:
        super().__init__(presentation=presentation, name=name)
        self.stream = open_stream(stream) if isinstance(stream, str) else stream
        self.uart = Uart(self.bar0, self.stream, self.clock, self.counters, self.intx.set_level)
        with self.lock:
            self.stream.start(self._stream_changed)

    def _stream_changed(self) -> None:
        with self.lock:
            if not self.paused:
                self.stream.service()
                self.uart.service()

    def on_pause(self) -> None:
        self.uart.held = True

    def on_resume(self) -> None:
        self.uart.held = False
        self._stream_changed()

    def on_reset(self, kind: ResetKind) -> None:
        self.uart.reset()

    def on_save(self) -> None:
        self.state = self.uart.state()

    def on_load(self) -> None:
        self.uart.load(self.state)

    def statistics(self) -> dict[str, int | float | str]:
        """What the stream counted."""
        return self.stream.statistics()

    def close(self) -> None:
        """Also closes the stream."""
        super().close()
        with self.lock:
            self.stream.close()
