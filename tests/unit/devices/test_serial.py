"""The 16550A against National Semiconductor's PC16550D data sheet; numbers in brackets are its sections."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from iolane.backends.stream import MemoryStream
from iolane.devices.serial import PciSerial
from iolane.devices.serial.registers import InterruptSource
from iolane.devices.serial.uart import TIMEOUT_NS, TRANSMIT_NS
from iolane.testing.drivers.serial import DATA, FCR, IER, IIR, LCR, LSR, MCR, MSR, SCR, SerialDriver

RECEIVED, TRANSMITTER, LINE, MODEM = 1, 2, 4, 8
DTR, RTS, OUT1, OUT2, LOOP = 1, 2, 4, 8, 16
LATCH, BREAK = 0x80, 0x40
NONE = 0xC1
"""IIR with FIFOs enabled and nothing pending."""


@pytest.fixture
def stream() -> MemoryStream:
    return MemoryStream()


@pytest.fixture
def port(stream: MemoryStream) -> Iterator[SerialDriver]:
    with SerialDriver(PciSerial(stream), memory=0) as driver:
        driver.get(MSR)
        driver.put(IER, 0)
        yield driver


def sources(port: SerialDriver) -> list[int]:
    """IIR read until it says none."""
    found = []
    while not (shown := port.get(IIR)) & 1:
        found.append(shown & 0x0F)
        if len(found) > 9:
            break
    return found


# What 8250_pci looks for: class 0x0700, programming interface at most 6, one I/O BAR of 8 bytes.


def test_pci_identity(port: SerialDriver) -> None:
    config = port.device.config
    assert config.read(0, 4) == 0x0002_1B36
    assert config.read(8, 4) == 0x0700_0201
    config.write(0x10, 4, 0xFFFF_FFFF)
    assert config.read(0x10, 4) & 0xFFFF == 0xFFF9
    assert config.read(0x3D, 1) == 1


def test_reset_values() -> None:
    """Table III."""
    device = PciSerial(MemoryStream())
    values = [device.bar0.read(register, 1) for register in (IER, IIR, LCR, MCR, LSR, MSR)]
    assert values == [0, 1, 0, 0, 0x60, 0xB0]
    device.close()


def test_divisor_latch_banks_the_first_two_addresses(port: SerialDriver) -> None:
    """8.2."""
    port.put(IER, MODEM)
    port.put(LCR, LATCH | 3)
    assert (port.get(DATA), port.get(IER)) == (12, 0)
    port.put(DATA, 0x34)
    port.put(IER, 0x12)
    assert (port.get(DATA), port.get(IER)) == (0x34, 0x12)
    port.put(LCR, 3)
    assert port.get(IER) == MODEM
    assert port.device.uart.state().divisor == 0x1234


def test_scratch_and_reserved_bits(port: SerialDriver) -> None:
    for register, kept in ((SCR, 0xFF), (IER, 0x0F), (MCR, 0x1F), (LCR, 0xFF)):
        port.put(register, 0xFF)
        assert port.get(register) == kept


def test_wide_accesses_are_bytes(port: SerialDriver) -> None:
    port.write(6, 2, 0x5A00)
    assert port.read(6, 2) >> 8 == 0x5A
    assert port.read(4, 4).to_bytes(4, "little")[3] == 0x5A


# Receiving.


def test_trigger_levels(port: SerialDriver, stream: MemoryStream) -> None:
    """8.4 and 8.11: interrupts at 1, 4, 8, 14 bytes."""
    port.put(IER, RECEIVED)
    for setting, level in enumerate((1, 4, 8, 14)):
        port.put(FCR, setting << 6 | 3)
        stream.feed(b"x" * (level - 1))
        assert port.get(IIR) == NONE
        stream.feed(b"y")
        assert port.get(IIR) == 0xC4
        assert port.line
        port.get(DATA)
        assert port.get(IIR) == NONE, "below the level again"
        port.put(FCR, 3)


def test_timeout_tells_of_bytes_below_the_level(port: SerialDriver, stream: MemoryStream) -> None:
    """8.11: four frame times after the last byte or read."""
    port.put(IER, RECEIVED)
    stream.feed(b"abc")
    port.device.clock.advance(TIMEOUT_NS - 1)
    assert not port.line
    port.device.clock.advance(1)
    assert port.line
    assert port.get(IIR) == 0xCC
    assert port.get(DATA) == ord("a")
    assert not port.line
    port.device.clock.advance(TIMEOUT_NS // 2)
    assert port.get(DATA) == ord("b")
    port.device.clock.advance(TIMEOUT_NS - 1)
    assert not port.line
    port.device.clock.advance(1)
    assert port.get(IIR) == 0xCC


def test_data_ready_follows_the_fifo(port: SerialDriver, stream: MemoryStream) -> None:
    stream.feed(b"ab")
    values = [port.get(register) for register in (LSR, DATA, LSR, DATA, LSR)]
    assert values == [0x61, ord("a"), 0x61, ord("b"), 0x60]
    assert port.get(DATA) == 0


def test_input_waits_for_room(port: SerialDriver, stream: MemoryStream) -> None:
    data = os.urandom(1000)
    stream.feed(data)
    assert stream.bytes_read == 16
    assert bytes(port.get(DATA) for _ in data) == data
    assert port.get(LSR) == 0x60, "no overrun, ever"


def test_input_waits_until_the_port_is_open(port: SerialDriver, stream: MemoryStream) -> None:
    """Linux clears the FIFOs and reads the buffer when it opens and closes a port: nothing may be in it."""
    port.put(MCR, OUT2)
    stream.feed(b"early")
    assert (port.get(LSR), stream.bytes_read) == (0x60, 0)
    port.put(MCR, OUT2 | DTR | RTS)
    assert (port.get(LSR), stream.bytes_read) == (0x61, 5)
    port.put(MCR, 0)
    port.put(FCR, 7)
    stream.feed(b"!")
    port.put(IER, RECEIVED)
    assert port.get(DATA) == ord("!"), "a driver that ignores the modem lines"


def test_a_driver_stops_the_peer_by_rts(port: SerialDriver, stream: MemoryStream) -> None:
    """Linux does when a terminal with crtscts is full."""
    port.put(IER, RECEIVED)
    port.put(MCR, DTR)
    stream.feed(b"x" * 100)
    assert (port.get(LSR), stream.bytes_read) == (0x60, 0)
    port.put(MCR, DTR | RTS)
    assert stream.bytes_read == 16


def test_without_fifos_one_byte_at_a_time(port: SerialDriver, stream: MemoryStream) -> None:
    port.put(FCR, 0)
    port.put(IER, RECEIVED)
    stream.feed(b"abc")
    assert port.get(IIR) == 4, "no FIFO bits in IIR"
    assert bytes(port.get(DATA) for _ in range(3)) == b"abc"
    assert port.get(IIR) == 1


def test_changing_fifo_enable_clears_both(port: SerialDriver, stream: MemoryStream) -> None:
    """8.4."""
    stream.feed(b"lost")
    port.put(DATA, ord("t"))
    port.put(FCR, 0)
    port.device.clock.advance(TRANSMIT_NS)
    assert (port.get(LSR), stream.take()) == (0x60, b"")
    counters = port.device.counters
    assert (counters["received_bytes_cleared"], counters["transmit_bytes_cleared"]) == (4, 1)


def test_break(port: SerialDriver, stream: MemoryStream) -> None:
    """8.3: a zero byte with the break bit, a line status interrupt, cleared by reading LSR."""
    port.put(IER, LINE | RECEIVED)
    stream.feed_break()
    assert port.get(IIR) == 0xC6
    assert port.get(LSR) == 0xF1
    assert port.get(LSR) == 0x61
    assert port.get(DATA) == 0
    port.put(LCR, BREAK | 3)
    port.put(LCR, 3)
    assert stream.breaks == [True, False]


def test_error_is_shown_with_its_own_byte(port: SerialDriver, stream: MemoryStream) -> None:
    """8.3, FIFO mode: the error bits are those of the byte at the top."""
    stream.feed(b"a")
    stream.feed_break()
    assert port.get(LSR) == 0xE1, "an error somewhere in the FIFO, not at its top"
    port.get(DATA)
    assert port.get(LSR) == 0xF1


# Transmitting.


def test_bytes_leave_when_the_fifo_is_full_or_after_a_time(port: SerialDriver, stream: MemoryStream) -> None:
    for byte in range(15):
        port.put(DATA, byte)
    assert stream.take() == b""
    port.put(DATA, 15)
    assert stream.take() == bytes(range(16))
    port.put(DATA, 0x55)
    assert stream.take() == b""
    port.device.clock.advance(TRANSMIT_NS)
    assert stream.take() == b"\x55"


def test_polling_line_status_hastens(port: SerialDriver, stream: MemoryStream) -> None:
    port.put(DATA, ord("p"))
    assert port.get(LSR) & 0x60 == 0x60
    assert stream.take() == b"p"


def test_transmitter_interrupt(port: SerialDriver, stream: MemoryStream) -> None:
    """8.5, table IV: set by becoming empty or by its enabling, cleared by IIR or a byte."""
    port.put(IER, TRANSMITTER)
    assert port.line
    assert [port.get(IIR), port.get(IIR)] == [0xC2, NONE]
    port.put(IER, 0)
    port.put(IER, TRANSMITTER)
    assert port.line
    port.put(DATA, 1)
    assert not port.line
    port.device.clock.advance(TRANSMIT_NS)
    assert port.line
    assert sources(port) == [2]


def test_a_full_peer_stops_the_transmitter() -> None:
    stream = MemoryStream(capacity=20)
    with SerialDriver(PciSerial(stream), memory=0) as port:
        port.send(bytes(range(100)))
        port.run()
        assert port.get(LSR) & 0x60 == 0
        received = bytearray()
        while part := stream.take():
            received += part
            port.run()
        assert received == bytes(range(100))
        assert port.device.counters["transmit_overruns"] == 0


def test_writing_into_a_full_fifo_is_counted() -> None:
    with SerialDriver(PciSerial(MemoryStream(capacity=0)), memory=0) as port:
        for byte in range(20):
            port.put(DATA, byte)
        assert port.device.counters["transmit_overruns"] == 4
        assert port.get(LSR) & 0x60 == 0
        port.put(FCR, 5)
        assert port.get(LSR) & 0x60 == 0x60


def test_output_without_a_peer_is_dropped_and_counted(port: SerialDriver, stream: MemoryStream) -> None:
    stream.connect(False)
    port.send(b"into the void")
    port.run()
    assert port.device.describe()["stream_bytes_dropped"] == 13


# Priorities.


def test_interrupts_are_shown_by_priority(port: SerialDriver, stream: MemoryStream) -> None:
    """8.5, table IV."""
    port.put(IER, RECEIVED | TRANSMITTER | LINE | MODEM)
    stream.connect(False)
    stream.feed_break()
    stream.feed(b"12345678")
    assert port.get(IIR) == 0xC6
    port.get(LSR)
    assert port.get(IIR) == 0xC4
    while port.get(LSR) & 1:
        port.get(DATA)
    assert port.get(IIR) == 0xC2
    assert port.get(IIR) == 0xC0
    port.get(MSR)
    assert port.get(IIR) == NONE
    assert not port.line


# Modem lines.


def test_the_peer_is_carrier(port: SerialDriver, stream: MemoryStream) -> None:
    """8.8."""
    port.put(IER, MODEM)
    assert port.get(MSR) == 0xB0
    stream.connect(False)
    assert port.get(IIR) == 0xC0
    assert [port.get(MSR), port.get(MSR)] == [0x0B, 0x00]
    stream.connect()
    assert [port.get(MSR), port.get(MSR)] == [0xBB, 0xB0]


def test_loopback_of_modem_lines(port: SerialDriver) -> None:
    """8.7: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD; RI tells of its trailing edge only (8.8)."""
    port.put(MCR, LOOP)
    port.get(MSR)
    for output, status in ((RTS, 0x11), (DTR, 0x22), (OUT1, 0x40), (OUT2, 0x88)):
        port.put(MCR, LOOP | output)
        assert port.get(MSR) == status
        port.put(MCR, LOOP)
        assert port.get(MSR) == {0x11: 0x01, 0x22: 0x02, 0x40: 0x04, 0x88: 0x08}[status]


def test_loopback_of_data(port: SerialDriver, stream: MemoryStream) -> None:
    """8.7: what is transmitted is received at once; nothing reaches or comes from the line."""
    port.put(MCR, LOOP)
    stream.feed(b"from outside")
    for byte in b"0123456789abcdefgh":
        port.put(DATA, byte)
    assert port.get(LSR) == 0x63, "two bytes too many"
    assert bytes(port.get(DATA) for _ in range(16)) == b"0123456789abcdef"
    assert port.get(LSR) == 0x60
    assert stream.take() == b""
    port.put(MCR, RTS)
    assert bytes(port.get(DATA) for _ in range(12)) == b"from outside"


def test_linux_counts_16_bytes_of_fifo(port: SerialDriver) -> None:
    """size_fifo() in Linux's 8250_port.c, which tells a 16550A from its successors."""
    port.put(LCR, 0)
    port.put(FCR, 7)
    port.put(MCR, LOOP)
    for byte in range(256):
        port.put(DATA, byte)
    count = 0
    while port.get(LSR) & 1 and count < 256:
        port.get(DATA)
        count += 1
    assert count == 16


# Both directions under load.


def test_everything_arrives(stream: MemoryStream) -> None:
    outward, inward = os.urandom(3000), os.urandom(3000)
    with SerialDriver(PciSerial(stream), memory=0) as port:
        port.send(outward)
        stream.feed(inward)
        served = port.run(200_000)
        assert stream.take() == outward
        assert bytes(port.received) == inward
        assert served.count(InterruptSource.TRANSMITTER_EMPTY) < 3000 // 8, "sixteen bytes an interrupt"
