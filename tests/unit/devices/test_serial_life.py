"""The 16550A's state, a hostile guest, and the threads of a carrier and of a stream."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iolane.backends.stream import MemoryStream
from iolane.devices.serial import PciSerial, UartRegisters
from iolane.devices.serial.registers import InterruptSource
from iolane.devices.serial.uart import TIMEOUT_NS
from iolane.model.state import StateError
from iolane.model.workers import Workers
from iolane.testing.drivers.serial import DATA, IER, LCR, LSR, MSR, SCR, SerialDriver

BREAK = 0x40


@pytest.fixture
def stream() -> MemoryStream:
    return MemoryStream()


@pytest.fixture
def port(stream: MemoryStream) -> Iterator[SerialDriver]:
    with SerialDriver(PciSerial(stream), memory=0) as driver:
        driver.get(MSR)
        driver.put(IER, 0)
        yield driver


# State.


def test_state_in_the_middle_of_things(stream: MemoryStream) -> None:
    with SerialDriver(PciSerial(stream), memory=0) as port:
        stream.feed(b"unread")
        port.put(DATA, ord("u"))
        port.put(SCR, 0x77)
        saved = port.device.save()
        other_stream = MemoryStream()
        with SerialDriver(PciSerial(other_stream), memory=0) as other:
            other.device.load(saved)
            assert other.device.uart.state() == port.device.uart.state()
            assert other.device.bar0.SCRATCH == 0x77
            other.device.clock.advance(TIMEOUT_NS)
            assert other.line
            other.handle()
            assert bytes(other.received) == b"unread"
            assert other_stream.take() == b"u"


@pytest.mark.parametrize(
    "change",
    [
        {"received": b"ab", "errors": b"\0"},
        {"received": b"ab", "errors": b"\0\0", "fifo_control": 0},
        {"received": b"a", "errors": b"\x01"},
        {"transmit": b"x" * 17},
        {"divisor": 65536},
        {"lines": 16},
    ],
)
def test_a_state_that_no_16550_can_be_in_is_refused(port: SerialDriver, change: dict[str, object]) -> None:
    before = port.device.uart.state()
    bad = msgspec.structs.replace(before, **change)
    port.device.uart.state = lambda: bad  # type: ignore[method-assign]
    saved = port.device.save()
    del port.device.uart.state
    with pytest.raises(StateError):
        port.device.load(saved)
    assert port.device.uart.state() == before


def test_reset(port: SerialDriver, stream: MemoryStream) -> None:
    port.put(IER, 0x0F)
    port.put(LCR, BREAK)
    stream.feed(b"abc")
    port.device.reset()
    assert not port.line
    assert stream.breaks == [True, False]
    assert port.device.uart.state().interrupt_enable == 0
    assert port.device.bar0.read(LSR, 1) == 0x60


def test_paused_it_neither_takes_nor_gives(port: SerialDriver, stream: MemoryStream) -> None:
    port.put(DATA, ord("x"))
    port.device.pause()
    stream.feed(b"y")
    assert (stream.take(), stream.bytes_read) == (b"", 0)
    port.device.resume()
    assert (stream.take(), port.get(DATA)) == (b"x", ord("y"))


def test_registers_are_documented() -> None:
    assert ".DIVISOR_LATCH" in UartRegisters.table()


# A hostile guest.

steps = st.one_of(
    st.tuples(st.just("read"), st.integers(0, 7), st.sampled_from([1, 2, 4])),
    st.tuples(st.just("write"), st.integers(0, 7), st.integers(0, 255)),
    st.tuples(st.just("feed"), st.integers(0, 40), st.integers(0, 255)),
    st.tuples(st.just("advance"), st.integers(0, 500_000), st.just(0)),
    st.tuples(st.sampled_from(["take", "break", "peer", "save"]), st.integers(0, 1), st.just(0)),
)


@pytest.mark.hostile
@given(st.lists(steps, max_size=120))
@settings(max_examples=200, deadline=None)
def test_no_sequence_of_accesses_raises_or_hangs(sequence: list[tuple[str, int, int]]) -> None:
    stream = MemoryStream(capacity=24)
    with SerialDriver(PciSerial(stream), memory=0) as port:
        for what, first, second in sequence:
            if what == "read" and first + second <= 8:
                assert 0 <= port.read(first, second) < 1 << 8 * second
            elif what == "write":
                port.put(first, second)
            elif what == "feed":
                stream.feed(bytes([second]) * first)
            elif what == "advance":
                port.device.clock.advance(first)
            elif what == "take":
                stream.take()
            elif what == "break":
                stream.feed_break()
            elif what == "peer":
                stream.connect(bool(first))
            elif what == "save":
                port.device.load(port.device.save())
            state = port.device.uart.state()
            assert len(state.received) == len(state.errors) <= 16
            assert len(state.transmit) <= 16
            assert port.line == bool(port.device.uart._source() is not InterruptSource.NONE)
        assert port.device.error_count == 0
        assert port.device.clock.timers <= 2


# With the threads of a carrier and of a stream.


def test_with_threads_and_a_socket(tmp_path: Path) -> None:
    outward, inward = os.urandom(5000), os.urandom(5000)
    device = PciSerial(f"listen:{tmp_path / 'line'}")
    received = bytearray()
    with Workers(1) as workers, SerialDriver(device, memory=0) as port, socket.socket(socket.AF_UNIX) as peer:
        device.attach(workers)
        peer.connect(str(tmp_path / "line"))
        peer.settimeout(10)
        waiting = select.poll()
        waiting.register(port.descriptors[0], select.POLLIN)
        until = time.monotonic() + 10
        while not device.statistics()["stream_connected"]:  # what is sent to nobody is dropped
            assert time.monotonic() < until
            waiting.poll(10)
        port.send(outward)

        def converse() -> None:
            peer.sendall(inward)
            while len(received) < len(outward):
                received.extend(peer.recv(4096))

        other_end = threading.Thread(target=converse)
        other_end.start()
        while len(port.received) < len(inward) or other_end.is_alive():
            if waiting.poll(50) and port.interrupts():
                port.handle()
        other_end.join()
    assert (bytes(port.received), bytes(received)) == (inward, outward)
    assert device.statistics()["stream_bytes_dropped"] == 0
