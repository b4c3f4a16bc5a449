"""The shared adder: what its VFs do, within the limits that the PF sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.adder import AdderRegisters
from iolane.devices.registry import create
from iolane.devices.sriov import (
    COPY_LIMIT,
    TOTAL_VFS,
    CopyResult,
    SharedAdder,
    SharedAdderRegisters,
    VirtualAdder,
    VirtualAdderRegisters,
)
from iolane.model.pci import VirtualFunction
from iolane.testing.drivers.function import MEMORY_START
from iolane.testing.drivers.sriov import SriovDriver, VirtualDriver
from iolane.testing.model_state import check_golden, golden_files, missing_golden, write_golden

GOLDEN = Path(__file__).parent / "golden"
ADD, COPY = 1, 2
Adder = VirtualDriver[VirtualFunction]


@pytest.fixture
def driver() -> Iterator[SriovDriver[SharedAdder]]:
    with SriovDriver(SharedAdder()) as driver:
        driver.place()
        driver.enable_vfs(3)
        yield driver


def add(vf: Adder, a: int, b: int) -> int:
    vf.write(VirtualAdderRegisters.A.offset, 4, a)
    vf.write(VirtualAdderRegisters.B.offset, 4, b)
    vf.write(VirtualAdderRegisters.CONTROL.offset, 4, ADD)
    assert vf.interrupts() == 1
    return vf.read(VirtualAdderRegisters.SUM.offset, 4)


def copy(vf: Adder, source: int, destination: int, count: int) -> int:
    vf.write(VirtualAdderRegisters.SOURCE.offset, 8, source)
    vf.write(VirtualAdderRegisters.DESTINATION.offset, 8, destination)
    vf.write(VirtualAdderRegisters.COUNT.offset, 4, count)
    vf.write(VirtualAdderRegisters.CONTROL.offset, 4, COPY)
    assert vf.interrupts() == 1
    return vf.read(VirtualAdderRegisters.RESULT.offset, 4)


def test_it_has_a_name() -> None:
    device = create("sriov")
    assert isinstance(device, SharedAdder)
    assert device.describe()["vfs_enabled"] == 0
    device.close()


def test_vfs_are_driven_like_the_example() -> None:
    for spec in AdderRegisters.layout.registers:
        mine = getattr(VirtualAdderRegisters, spec.name)
        assert (mine.offset, mine.width, mine.access) == (spec.offset, spec.width, spec.access)


def test_each_vf_adds_for_itself(driver: SriovDriver[SharedAdder]) -> None:
    with driver.virtual(0) as first, driver.virtual(2) as third:
        assert (add(first, 40, 2), add(third, 0xFFFF_FFFF, 2)) == (42, 1)
        assert first.read(VirtualAdderRegisters.SUM.offset, 4) == 42
        assert [vf.read(VirtualAdderRegisters.NUMBER.offset, 4) for vf in (first, third)] == [0, 2]
    assert driver.read(SharedAdderRegisters.VFS.offset, 4) == 3
    work = [driver.read(SharedAdderRegisters.WORK.element_offset(n), 4) for n in range(TOTAL_VFS)]
    assert work == [1, 0, 1, 0]


def test_a_vf_copies_the_memory_that_it_may_reach(driver: SriovDriver[SharedAdder]) -> None:
    with driver.virtual(0) as first, driver.virtual(1, memory=0) as second:
        first.memory[:5] = b"hello"
        assert copy(first, MEMORY_START, MEMORY_START + 100, 5) == CopyResult.DONE
        assert bytes(first.memory[100:105]) == b"hello"
        assert copy(second, MEMORY_START, MEMORY_START + 200, 5) == CopyResult.FAULT
        assert second.device.dma.fault_count == 1
        assert bytes(first.memory[200:205]) == bytes(5)


def test_the_pf_limits_its_vfs(driver: SriovDriver[SharedAdder]) -> None:
    limit = SharedAdderRegisters.LIMIT
    assert driver.read(limit.element_offset(1), 4) == COPY_LIMIT
    driver.write(limit.element_offset(1), 4, 16)
    driver.write(limit.element_offset(0), 4, 0xFFFF_FFFF)
    assert driver.read(limit.element_offset(0), 4) == COPY_LIMIT
    with driver.virtual(0) as first, driver.virtual(1) as second:
        assert second.read(VirtualAdderRegisters.LIMIT.offset, 4) == 16
        assert copy(second, MEMORY_START, MEMORY_START + 64, 16) == CopyResult.DONE
        assert copy(second, MEMORY_START, MEMORY_START + 64, 17) == CopyResult.REFUSED
        assert copy(first, MEMORY_START, MEMORY_START + 64, 17) == CopyResult.DONE
        assert copy(first, MEMORY_START, MEMORY_START, COPY_LIMIT + 1) == CopyResult.REFUSED
    driver.disable_vfs()
    driver.enable_vfs(2)
    with driver.virtual(1) as second:
        assert second.read(VirtualAdderRegisters.LIMIT.offset, 4) == 16, "a limit is the PF's, not the VF's"


def test_a_reset_of_the_pf_lifts_its_limits(driver: SriovDriver[SharedAdder]) -> None:
    driver.write(SharedAdderRegisters.LIMIT.element_offset(0), 4, 16)
    driver.device.reset()
    assert driver.device.sriov.all[0].bar0.LIMIT == COPY_LIMIT


def busy() -> SharedAdder:
    driver = SriovDriver(SharedAdder())
    driver.place()
    driver.enable_vfs(2)
    driver.write(SharedAdderRegisters.LIMIT.element_offset(1), 4, 16)
    with driver.virtual(1) as vf:
        assert add(vf, 40, 2) == 42
        return driver.device


def write() -> None:
    """How the files came about; a released version's file is never written again."""
    write_golden(busy(), GOLDEN)


def test_golden_states() -> None:
    assert missing_golden(GOLDEN, SharedAdder) == []
    for path in golden_files(GOLDEN, SharedAdder):
        with SriovDriver(check_golden(SharedAdder, path)) as driver:
            assert driver.read(SharedAdderRegisters.VFS.offset, 4) == 2
            with driver.virtual(1, memory=0) as vf:
                assert isinstance(vf.device, VirtualAdder)
                assert vf.read(VirtualAdderRegisters.SUM.offset, 4) == 42
                assert vf.read(VirtualAdderRegisters.LIMIT.offset, 4) == 16
                assert vf.read(VirtualAdderRegisters.WORK.offset, 4) == 1
