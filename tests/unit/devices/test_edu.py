"""edu against QEMU's docs/specs/edu.rst; each test names the section."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iolane import IolaneError
from iolane.devices.edu import BUFFER, BUFFER_SIZE, DmaCommand, Edu, EduRegisters, Status
from iolane.model.interrupts import InterruptMode
from iolane.model.state import StateError
from iolane.model.workers import Workers
from iolane.testing.drivers.edu import EduDriver
from iolane.testing.drivers.function import MEMORY_START

ONES = {4: 0xFFFF_FFFF, 8: 0xFFFF_FFFF_FFFF_FFFF}


@pytest.fixture(params=[InterruptMode.MSI, InterruptMode.INTX], ids=lambda mode: mode.value)
def driver(request: pytest.FixtureRequest) -> Iterator[EduDriver]:
    with EduDriver(Edu(), interrupts=request.param) as driver:
        yield driver


def test_pci_specs(driver: EduDriver) -> None:
    config = driver.device.config
    assert config.read(0, 4) == 0x11E8_1234
    region = driver.device.regions[0]
    assert region is not None
    assert region.size == 1 << 20


def test_identification_is_read_only(driver: EduDriver) -> None:
    driver.put(EduRegisters.IDENTIFICATION, 0)
    assert driver.get(EduRegisters.IDENTIFICATION) == 0x010000ED


@given(st.integers(0, ONES[4]))
@settings(max_examples=20, deadline=None)
def test_liveness_is_the_inversion(value: int) -> None:
    with EduDriver(Edu(), memory=0) as driver:
        driver.put(EduRegisters.LIVENESS, value)
        assert driver.get(EduRegisters.LIVENESS) == value ^ ONES[4]


# MMIO area spec: only 4 bytes below 0x80, 4 or 8 above.


OTHER_SIZES = [(0, 1), (0, 2), (0, 8), (4, 1), (0x98, 2), (0x82, 4), (0x84, 8)]


@pytest.mark.parametrize(("offset", "size"), OTHER_SIZES)
def test_accesses_of_another_size_do_nothing(driver: EduDriver, offset: int, size: int) -> None:
    before = bytes(driver.device.bar0.storage)
    assert driver.read(offset, size) == (1 << 8 * size) - 1
    driver.write(offset, size, (1 << 8 * size) - 1)
    assert bytes(driver.device.bar0.storage) == before


def test_wide_registers_take_halves(driver: EduDriver) -> None:
    driver.write(0x80, 4, 0x1122_3344)
    driver.write(0x84, 4, 0x5566_7788)
    assert driver.get(EduRegisters.DMA_SOURCE) == 0x5566_7788_1122_3344


# Factorial.


@pytest.mark.parametrize("operand", [0, 1, 5, 12, 13, 33, 34, 0xFFFF_FFFF])
def test_factorial_by_interrupt(driver: EduDriver, operand: int) -> None:
    wanted = math.factorial(operand) % 2**32 if operand < 100 else 0
    assert driver.factorial(operand) == wanted


def test_factorial_without_interrupt(driver: EduDriver) -> None:
    driver.put(EduRegisters.FACTORIAL, 6)
    assert driver.get(EduRegisters.FACTORIAL) == 720
    assert driver.interrupts() == 0


def test_only_the_interrupt_bit_of_status_can_be_written(driver: EduDriver) -> None:
    driver.put(EduRegisters.STATUS, ONES[4])
    assert driver.get(EduRegisters.STATUS) == Status.make(INTERRUPT=1)


def test_status_says_computing_and_further_operands_are_lost() -> None:
    device, go, computing = Edu(), threading.Event(), threading.Event()
    with Workers(1) as workers, EduDriver(device) as driver:
        device.attach(workers)

        def keep_the_only_worker_busy() -> None:
            computing.set()
            go.wait(10)

        workers.submit(keep_the_only_worker_busy)
        assert computing.wait(10)
        driver.put(EduRegisters.FACTORIAL, 4)
        assert driver.get(EduRegisters.STATUS) & 1
        driver.put(EduRegisters.FACTORIAL, 5)
        assert device.tasks.started == 1
        go.set()
        device.pause()
        assert driver.get(EduRegisters.FACTORIAL) == 24
        assert not driver.get(EduRegisters.STATUS) & 1


# IRQ controller.


def test_interrupt_status_gathers_and_acknowledging_clears(driver: EduDriver) -> None:
    driver.put(EduRegisters.RAISE, 0x0F00_0001)
    driver.put(EduRegisters.RAISE, 0x10)
    assert driver.interrupts() >= 1
    assert driver.get(EduRegisters.INTERRUPT_STATUS) == 0x0F00_0011
    driver.put(EduRegisters.ACKNOWLEDGE, 0x11)
    assert driver.get(EduRegisters.INTERRUPT_STATUS) == 0x0F00_0000
    driver.put(EduRegisters.ACKNOWLEDGE, ONES[4])
    assert driver.get(EduRegisters.INTERRUPT_STATUS) == 0
    assert (driver.get(EduRegisters.RAISE), driver.get(EduRegisters.ACKNOWLEDGE)) == (0, 0)


def test_the_line_is_a_level() -> None:
    with EduDriver(Edu(), interrupts=InterruptMode.INTX) as driver:
        driver.put(EduRegisters.RAISE, 3)
        assert [driver.interrupts(), driver.interrupts()] == [1, 1], "asserted still, so raised again"
        driver.put(EduRegisters.ACKNOWLEDGE, 1)
        assert driver.line
        driver.put(EduRegisters.ACKNOWLEDGE, 2)
        assert not driver.line
        driver.interrupts()
        assert driver.interrupts() == 0


def test_msi_tells_each_raise() -> None:
    with EduDriver(Edu(), interrupts=InterruptMode.MSI) as driver:
        for _ in range(3):
            driver.put(EduRegisters.RAISE, 1)
        assert driver.interrupts() == 3
        assert not driver.line


def test_raising_nothing_is_no_interrupt(driver: EduDriver) -> None:
    driver.put(EduRegisters.RAISE, 0)
    assert driver.interrupts() == 0


# DMA controller.


def test_there_and_back(driver: EduDriver) -> None:
    data = os.urandom(BUFFER_SIZE)
    driver.memory[:BUFFER_SIZE] = data
    driver.to_device(0, BUFFER_SIZE)
    driver.to_memory(0x8000, 100, at=50)
    assert driver.memory[0x8000:0x8064] == data[50:150]
    assert not any(driver.memory[0x8064:0x9000])


def test_start_reads_one_until_it_is_done(driver: EduDriver) -> None:
    driver.start(MEMORY_START, BUFFER, 4, DmaCommand.make(START=1))
    driver.put(EduRegisters.DMA_COMMAND, 0)
    driver.put(EduRegisters.DMA_COUNT, 9999)  # the transfer has its own count
    assert driver.get(EduRegisters.DMA_COMMAND) == DmaCommand.make(START=1)
    driver.device.clock.advance(driver.device.dma_ns)
    assert driver.get(EduRegisters.DMA_COMMAND) == 0
    assert driver.interrupts() == 0
    assert driver.device.describe()["dma_bytes_read"] == 4


@pytest.mark.parametrize(
    ("start", "count"), [(BUFFER - 1, 1), (BUFFER, 4097), (BUFFER + 4096, 1), (BUFFER, 1 << 63), (0, 16)]
)
@pytest.mark.parametrize("to_memory", [0, 1])
def test_a_range_that_leaves_the_buffer_moves_nothing(
    driver: EduDriver, start: int, count: int, to_memory: int
) -> None:
    source, destination = (start, MEMORY_START) if to_memory else (MEMORY_START, start)
    driver.transfer(source, destination, count, DmaCommand.make(START=1, INTERRUPT=1, TO_MEMORY=to_memory))
    assert driver.device.counters["dma_outside_buffer"] == 1
    assert not any(driver.memory)


def test_memory_that_is_not_there_is_a_counted_fault(driver: EduDriver) -> None:
    driver.transfer(0, BUFFER, 16, DmaCommand.make(START=1, INTERRUPT=1))
    assert driver.device.counters["dma_failed"] == 1
    assert driver.device.dma.fault_count == 1


def test_addresses_beyond_the_mask_are_clamped(driver: EduDriver) -> None:
    driver.memory[:4] = b"mask"
    far = MEMORY_START | 0xABC << 28
    driver.transfer(far, BUFFER, 4, DmaCommand.make(START=1, INTERRUPT=1))
    driver.to_memory(0x1000, 4)
    assert driver.memory[0x1000:0x1004].tobytes() == b"mask"


def test_a_wider_mask() -> None:
    with EduDriver(Edu(dma_mask=(1 << 40) - 1)) as driver:
        driver.transfer(MEMORY_START | 1 << 30, BUFFER, 4, DmaCommand.make(START=1, INTERRUPT=1))
        assert driver.device.dma.faults[0].iova == MEMORY_START | 1 << 30


def test_without_bus_mastering_nothing_moves() -> None:
    with EduDriver(Edu(), interrupts=InterruptMode.INTX) as driver:
        driver.memory[:4] = b"data"
        driver.device.config.write(4, 2, 2)
        driver.to_device(0, 4)
        assert driver.device.state.buffer == bytes(BUFFER_SIZE)


@pytest.mark.parametrize("options", [{"dma_mask": 0}, {"dma_mask": 1 << 64}, {"dma_microseconds": -1}])
def test_options_that_make_no_sense(options: dict[str, int]) -> None:
    with pytest.raises(IolaneError):
        Edu(**options)  # type: ignore[arg-type]


# State.


def test_a_transfer_under_way_survives_saving(driver: EduDriver) -> None:
    driver.memory[:4] = b"live"
    driver.start(MEMORY_START, BUFFER, 4, DmaCommand.make(START=1, INTERRUPT=1))
    driver.device.clock.advance(driver.device.dma_ns // 2)
    saved = driver.device.save()
    with EduDriver(Edu(), interrupts=driver.mode) as other:
        other.memory[:4] = b"live"
        other.device.load(saved)
        other.device.clock.advance(driver.device.dma_ns // 2 - 1)
        assert other.get(EduRegisters.DMA_COMMAND) & 1
        other.device.clock.advance(1)
        other.take(0x100)
        assert other.device.state.buffer[:5] == b"live\0"


def test_an_asserted_interrupt_survives_saving(driver: EduDriver) -> None:
    driver.put(EduRegisters.RAISE, 0x42)
    saved = driver.device.save()
    with EduDriver(Edu(), interrupts=driver.mode) as other:
        other.device.load(saved)
        assert other.get(EduRegisters.INTERRUPT_STATUS) == 0x42
        if driver.mode is InterruptMode.INTX:
            assert other.line
            assert other.interrupts() == 1


def test_a_state_that_contradicts_itself_is_refused(driver: EduDriver) -> None:
    for register, value in ((EduRegisters.STATUS, 1), (EduRegisters.DMA_COMMAND, 1)):
        other = Edu()
        other.bar0.store(register.offset, register.width, value)
        with pytest.raises(StateError):
            driver.device.load(other.save())
        other.close()


def test_reset_forgets_a_transfer_and_the_buffer(driver: EduDriver) -> None:
    driver.memory[:4] = b"data"
    driver.to_device(0, 4)
    driver.put(EduRegisters.RAISE, 1)
    driver.start(BUFFER, MEMORY_START + 0x1000, 4, DmaCommand.make(START=1, TO_MEMORY=1))
    driver.device.reset()
    driver.device.clock.advance(10 * driver.device.dma_ns)
    assert not any(driver.memory[0x1000:0x1004])
    assert (driver.line, driver.get(EduRegisters.INTERRUPT_STATUS)) == (False, 0)
    driver.interrupts()
    driver.enable()
    driver.to_memory(0x1000, 4)
    assert not any(driver.memory[0x1000:0x1004])


# A hostile guest.

accesses = st.tuples(
    st.booleans(),
    st.one_of(st.integers(0, 0xA8), st.integers(0, (1 << 20) - 8)),
    st.sampled_from([1, 2, 4, 8]),
    st.one_of(st.integers(0, ONES[8]), st.sampled_from([BUFFER, MEMORY_START, 4096, 1, 3, 5, 7])),
)


@pytest.mark.hostile
@given(st.lists(accesses, max_size=60), st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_sequence_of_accesses_raises(sequence: list[tuple[bool, int, int, int]], intx: bool) -> None:
    mode = InterruptMode.INTX if intx else InterruptMode.MSI
    with EduDriver(Edu(), interrupts=mode, memory=8192) as driver:
        for writes, offset, size, value in sequence:
            if writes:
                driver.write(offset, size, value & ((1 << 8 * size) - 1))
            else:
                assert 0 <= driver.read(offset, size) < 1 << 8 * size
            driver.device.clock.advance(value % 60_000)
        driver.device.load(driver.device.save())
        driver.device.reset()
        assert driver.device.error_count == 0
