"""The saved states of released versions of the small devices load for ever."""

from __future__ import annotations

from pathlib import Path

from examples.adder import Adder, AdderRegisters
from iolane.backends.stream import MemoryStream
from iolane.devices.edu import BUFFER, DmaCommand, Edu, EduRegisters, Status
from iolane.devices.serial import PciSerial
from iolane.model.interrupts import InterruptMode
from iolane.testing.drivers.edu import EduDriver
from iolane.testing.drivers.function import MEMORY_START, FunctionDriver
from iolane.testing.drivers.serial import DATA, IER, LCR, SCR, SerialDriver
from iolane.testing.model_state import check_golden, golden_files, missing_golden, write_golden

GOLDEN = Path(__file__).parent / "golden"
TEXT = b"what the buffer holds"


def mute() -> PciSerial:
    """A port whose peer takes nothing, so that its transmitter keeps what it has."""
    return PciSerial(MemoryStream(capacity=0))


def busy_adder() -> Adder:
    driver = FunctionDriver(Adder(), memory=0)
    for register, value in ((AdderRegisters.A, 40), (AdderRegisters.B, 2), (AdderRegisters.CONTROL, 1)):
        driver.write(register.offset, 4, value)
    return driver.device


def busy_edu() -> Edu:
    driver = EduDriver(Edu(), interrupts=InterruptMode.INTX)
    driver.memory[: len(TEXT)] = TEXT
    driver.to_device(0, len(TEXT))
    driver.put(EduRegisters.LIVENESS, 0x1234)
    driver.put(EduRegisters.STATUS, Status.make(INTERRUPT=1))
    driver.put(EduRegisters.FACTORIAL, 10)
    driver.put(EduRegisters.RAISE, 0x40)
    driver.start(BUFFER, MEMORY_START + 64, len(TEXT), DmaCommand.make(START=1, INTERRUPT=1, TO_MEMORY=1))
    driver.device.clock.advance(driver.device.dma_ns // 4)
    return driver.device


def busy_serial() -> PciSerial:
    device = mute()
    driver = SerialDriver(device, memory=0)
    assert isinstance(device.stream, MemoryStream)
    device.stream.feed(b"unread")
    device.stream.feed_break()
    driver.put(LCR, 0x83)
    driver.put(DATA, 0x60)
    driver.put(LCR, 0x03)
    driver.put(SCR, 0xA5)
    driver.put(IER, 0x0F)
    for byte in b"not sent":
        driver.put(DATA, byte)
    driver.device.clock.advance(10_000_000)
    return device


def write() -> None:
    """How the files came about; a released version's file is never written again."""
    for device in (busy_adder(), busy_edu(), busy_serial()):
        write_golden(device, GOLDEN)


def test_every_version_has_its_file() -> None:
    assert [missing_golden(GOLDEN, kind) for kind in (Adder, Edu, PciSerial)] == [[], [], []]


def test_adder() -> None:
    for path in golden_files(GOLDEN, Adder):
        with FunctionDriver(check_golden(Adder, path), memory=0) as driver:
            assert driver.read(AdderRegisters.SUM.offset, 4) == 42


def test_edu() -> None:
    for path in golden_files(GOLDEN, Edu):
        device = check_golden(Edu, path)
        assert device.state.buffer.startswith(TEXT)
        assert device.intx.level
        with EduDriver(device, interrupts=InterruptMode.INTX) as driver:
            assert driver.get(EduRegisters.FACTORIAL) == 3628800
            assert driver.get(EduRegisters.DMA_COMMAND) & 1
            device.clock.advance(device.dma_ns)
            assert bytes(driver.memory[64 : 64 + len(TEXT)]) == TEXT
            assert driver.get(EduRegisters.INTERRUPT_STATUS) == 0x141


def test_serial() -> None:
    for path in golden_files(GOLDEN, PciSerial):
        device = check_golden(mute, path)
        state = device.uart.state()
        assert (state.received, state.transmit, state.divisor) == (b"unread\0", b"not sent", 0x60)
        assert (state.errors[6], device.bar0.SCRATCH, device.intx.level) == (0x10, 0xA5, True)
        device.close()
