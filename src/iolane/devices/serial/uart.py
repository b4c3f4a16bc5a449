"""A 16550A (National Semiconductor PC16550D; numbers in brackets are sections of its data sheet).

The line has no speed of its own: bytes come when the driver has room for them and go when the stream takes
them. The divisor and the frame format are kept for the driver to read back. A full FIFO loses no input: what
does not fit stays with the stream. So does what comes before the port is open, or when the driver's own
buffers are full, as far as the driver shows it: the peer sends while RTS is asserted, or as long as not even
DTR is, while the receiver may interrupt.
"""

from __future__ import annotations

from collections.abc import Callable

from iolane.backends.stream import StreamBackend
from iolane.devices.serial.receiver import BREAK, ERRORS, Receiver
from iolane.devices.serial.registers import (
    FifoControl,
    InterruptEnable,
    InterruptSource,
    LineControl,
    LineStatus,
    ModemControl,
    UartRegisters,
)
from iolane.devices.serial.state import FIFO_DEPTH, UartState
from iolane.model.clock import Clock, Timer
from iolane.model.counters import Counters
from iolane.model.registers import Register8
from iolane.model.state import StateError

TIMEOUT_NS = 350_000
"""Four frames at 115200 baud: bytes below the trigger level interrupt after it (8.11)."""
TRANSMIT_NS = 300_000
"""Bytes that don't fill the FIFO leave this long after the last: a burst leaves and interrupts once."""
HOLDING_AND_SHIFT_EMPTY = LineStatus.make(HOLDING_EMPTY=1, EMPTY=1)
FIFOS_ENABLED = 0xC0
CONNECTED = 0b1011
"""DCD, DSR and CTS of a peer that is there."""


class Uart:
    """One port. Its owner calls `service` when the stream announces a change.

    Args:
        registers: whose hooks it takes.
        stream: the other end of the line.
        interrupt: told of each change of the interrupt's level.
    """

    def __init__(
        self,
        registers: UartRegisters,
        stream: StreamBackend,
        clock: Clock,
        counters: Counters,
        interrupt: Callable[[bool], None],
    ) -> None:
        self.registers = registers
        self.stream = stream
        self.held = False
        """The device is paused: nothing comes from the stream and nothing goes to it."""
        self._clock = clock
        self._counters = counters
        self._interrupt = interrupt
        self._receiver = Receiver()
        self._transmit = bytearray()
        self._timeout: Timer | None = None
        self._timeout_at = 0
        self._departure: Timer | None = None
        self._depart_at = 0
        self._break = False
        self.reset()
        registers.hook_read(UartRegisters.DATA, self._read_data)
        registers.hook_write(UartRegisters.DATA, self._write_data)
        registers.hook_read(UartRegisters.INTERRUPT_ENABLE, self._read_enable)
        registers.hook_write(UartRegisters.INTERRUPT_ENABLE, self._write_enable)
        registers.hook_read(UartRegisters.INTERRUPT_IDENTIFICATION, self._read_identification)
        registers.hook_write(UartRegisters.INTERRUPT_IDENTIFICATION, self._write_fifo_control)
        registers.hook_write(UartRegisters.LINE_CONTROL, self._write_line_control)
        registers.hook_write(UartRegisters.MODEM_CONTROL, self._write_modem_control)
        registers.hook_read(UartRegisters.LINE_STATUS, self._read_line_status)
        registers.hook_read(UartRegisters.MODEM_STATUS, self._read_modem_status)

    def reset(self) -> None:
        """Master reset (8, table III). The registers have their reset values already."""
        self._take(UartState(lines=self._stream_lines()))

    def service(self) -> None:
        """The stream may have bytes, take bytes, or have another peer."""
        if not self.held:
            self._pull()
            self._depart()
            self._update()

    # State.

    def state(self) -> UartState:
        """Everything, as data."""
        receiver = self._receiver
        return UartState(
            divisor=self._divisor,
            interrupt_enable=int(self._enable),
            fifo_control=int(self._fifo_control),
            received=bytes(receiver.data),
            errors=bytes(receiver.errors),
            overrun=receiver.overrun,
            timeout_pending=receiver.timed_out,
            transmit=bytes(self._transmit),
            transmitter_pending=self._transmitter_pending,
            lines=self._lines,
            deltas=self._deltas,
        )

    def load(self, state: UartState) -> None:
        """Take over a saved state. Raises StateError for one that no 16550 can be in."""
        depth = FIFO_DEPTH if FifoControl(state.fifo_control).ENABLE else 1
        if len(state.received) != len(state.errors) or max(len(state.received), len(state.transmit)) > depth:
            raise StateError("the FIFOs in the saved state contradict each other")
        if any(errors & ~ERRORS for errors in state.errors):
            raise StateError("the saved state has received bytes with unknown errors")
        self._take(state)
        if self._receiver.data:
            self._expect_timeout()
        if self._transmit:
            self._schedule_departure()

    def _take(self, state: UartState) -> None:
        self._divisor = state.divisor
        self._enable = InterruptEnable(state.interrupt_enable)
        self._fifo_control = FifoControl(state.fifo_control)
        self._receiver.configure(self._fifo_control)
        self._receiver.data[:] = state.received
        self._receiver.errors[:] = state.errors
        self._receiver.overrun = state.overrun
        self._receiver.timed_out = state.timeout_pending
        self._transmit[:] = state.transmit
        self._transmitter_pending = state.transmitter_pending
        self._lines = state.lines
        self._deltas = state.deltas
        self._timeout = self._departure = None
        self._follow_control()
        self._level = self._source() is not InterruptSource.NONE
        self._interrupt(self._level)

    # Interrupts (8.5).

    def _source(self) -> InterruptSource:
        enable, receiver = self._enable, self._receiver
        if enable.LINE_STATUS and receiver.faulty:
            return InterruptSource.LINE_STATUS
        if enable.RECEIVED and receiver.data:
            if receiver.triggered:
                return InterruptSource.RECEIVED
            if receiver.timed_out:
                return InterruptSource.TIMEOUT
        if enable.TRANSMITTER_EMPTY and self._transmitter_pending:
            return InterruptSource.TRANSMITTER_EMPTY
        if enable.MODEM_STATUS and self._deltas:
            return InterruptSource.MODEM_STATUS
        return InterruptSource.NONE

    def _update(self) -> None:
        level = self._source() is not InterruptSource.NONE
        if level != self._level:
            self._level = level
            self._interrupt(level)

    def _read_identification(self, _: Register8) -> int:
        """IIR. Showing the transmitter's interrupt is what clears it."""
        source = self._source()
        if source is InterruptSource.TRANSMITTER_EMPTY:
            self._transmitter_pending = False
            self._update()
        return source | (FIFOS_ENABLED if self._fifo_control.ENABLE else 0)

    def _read_enable(self, _: Register8) -> int:
        return self._divisor >> 8 if self._latch else self._enable

    def _write_enable(self, value: Register8) -> None:
        """IER. An empty transmitter interrupts when its interrupt is enabled (8.6)."""
        if self._latch:
            self._divisor = self._divisor & 0x00FF | value << 8
            return
        before, self._enable = self._enable, InterruptEnable(value & 0x0F)
        if self._enable.TRANSMITTER_EMPTY and not before.TRANSMITTER_EMPTY and not self._transmit:
            self._transmitter_pending = True
        self._follow_control()
        self._pull()
        self._update()

    # Data (8.2 divisor latch, 8.4 FIFO control, 8.11 FIFO modes).

    def _read_data(self, _: Register8) -> int:
        if self._latch:
            return self._divisor & 0xFF
        byte = self._receiver.take()
        if self._receiver.data:
            self._expect_timeout()
        else:
            # A driver that is reading goes on while there is data. Below the trigger level no interrupt tells
            # it what it knows; where INTx is automasked, every assertion costs a round trip.
            self._pull(max(1, self._receiver.trigger - 1))
        self._update()
        return byte

    def _write_data(self, value: Register8) -> None:
        if self._latch:
            self._divisor = self._divisor & 0xFF00 | value
            return
        self._transmitter_pending = False
        if len(self._transmit) < self._receiver.depth:
            self._transmit.append(value)
        else:
            self._counters.add("transmit_overruns")
        if self._loops or len(self._transmit) == self._receiver.depth:
            self._depart()
        else:
            self._schedule_departure()
        self._update()

    def _write_fifo_control(self, value: Register8) -> None:
        """FCR. Without ENABLE its other bits are not programmed; changing ENABLE clears both FIFOs."""
        wanted = FifoControl(value if value & 1 else 0)
        changed = wanted.ENABLE != self._fifo_control.ENABLE
        self._fifo_control = wanted.replace(CLEAR_RECEIVER=0, CLEAR_TRANSMITTER=0)
        self._receiver.configure(wanted)
        if changed or wanted.CLEAR_TRANSMITTER:
            self._clear_transmitter()
        if changed or wanted.CLEAR_RECEIVER:
            self._counters.add("received_bytes_cleared", len(self._receiver.data))
            self._receiver.clear()
            self._pull()
        self._update()

    def _clear_transmitter(self) -> None:
        if self._transmit:
            self._counters.add("transmit_bytes_cleared", len(self._transmit))
            self._transmit.clear()
            self._transmitter_pending = True

    def _pull(self, most: int = FIFO_DEPTH) -> None:
        """Take from the stream what there is room for."""
        self._follow_lines()
        receiver = self._receiver
        if self.held:
            return
        if self._loops or not self._ready or not receiver.room:
            self.stream.read(0)
            return
        if self.stream.take_break():
            self._counters.add("breaks_received")
            receiver.put(0, BREAK)
        data = self.stream.read(min(receiver.room, most)) if receiver.room else b""
        for byte in data:
            receiver.put(byte)
        self._counters.add("bytes_received", len(data))
        if receiver.data:
            self._expect_timeout()
        self._follow_lines()

    def _depart(self) -> None:
        """Let the stream, or in loopback the receiver, take what is to be transmitted."""
        if not self._transmit or self.held:
            return
        if self._loops:
            for byte in self._transmit:
                self._receiver.put(byte)
            count = len(self._transmit)
            self._expect_timeout()
        else:
            count = self.stream.write(bytes(self._transmit))
            self._counters.add("bytes_transmitted", count)
            self._follow_lines()
        del self._transmit[:count]
        if not self._transmit:
            self._transmitter_pending = True

    # Time. Both timers are left to run out rather than cancelled and made anew for each byte.

    def _schedule_departure(self) -> None:
        self._depart_at = self._clock.now_ns() + TRANSMIT_NS
        if self._departure is None:
            self._departure = self._clock.call_at(self._depart_at, self._departure_due)

    def _departure_due(self) -> None:
        self._departure = None
        if self._transmit and self._clock.now_ns() < self._depart_at:
            self._departure = self._clock.call_at(self._depart_at, self._departure_due)
        else:
            self._depart()
            self._update()

    def _expect_timeout(self) -> None:
        self._timeout_at = self._clock.now_ns() + TIMEOUT_NS
        if self._timeout is None and not self._receiver.triggered:
            self._timeout = self._clock.call_at(self._timeout_at, self._timeout_due)

    def _timeout_due(self) -> None:
        self._timeout = None
        if not self._receiver.data or self._receiver.triggered:
            return
        if self._clock.now_ns() < self._timeout_at:
            self._timeout = self._clock.call_at(self._timeout_at, self._timeout_due)
        else:
            self._receiver.timed_out = True
            self._update()

    # Line (8.1, 8.3).

    def _write_line_control(self, _: LineControl) -> None:
        self._follow_control()

    def _follow_control(self) -> None:
        """LCR, MCR or IER changed."""
        line, modem = self.registers.LINE_CONTROL, self.registers.MODEM_CONTROL
        self._latch = line.DIVISOR_LATCH
        self._loops = modem.LOOP
        self._ready = modem.RTS or (self._enable.RECEIVED and not modem.DTR)
        if bool(line.BREAK) != self._break:
            self._break = bool(line.BREAK)
            self._counters.add("breaks_sent", line.BREAK)
            self.stream.set_break(self._break)

    def _read_line_status(self, _: LineStatus) -> int:
        """LSR. A driver that polls it waits for the transmitter, which therefore does not dally."""
        self._depart()
        status = self._receiver.status | (0 if self._transmit else HOLDING_AND_SHIFT_EMPTY)
        self._receiver.acknowledge()
        self._update()
        return status

    # Modem (8.7, 8.8).

    def _stream_lines(self) -> int:
        return CONNECTED if self.stream.connected else 0

    def _follow_lines(self) -> None:
        """The inputs are the peer's outputs; in loopback RTS, DTR, OUT1 and OUT2 are CTS, DSR, RI and DCD."""
        if self._loops:
            control = self.registers.MODEM_CONTROL
            lines = control.RTS | control.DTR << 1 | control.OUT1 << 2 | control.OUT2 << 3
        else:
            lines = self._stream_lines()
        changed = lines ^ self._lines
        if changed:
            self._lines = lines
            self._deltas |= changed & ~(lines & 0b0100)  # RI tells of its trailing edge only

    def _write_modem_control(self, _: ModemControl) -> None:
        self._follow_control()
        self._follow_lines()
        self._pull()
        self._update()

    def _read_modem_status(self, _: object) -> int:
        """MSR. Reading clears the deltas."""
        status = self._lines << 4 | self._deltas
        self._deltas = 0
        self._update()
        return status
