"""Interrupts: PCIe Transport 1.0c, 3.5; Base 2.0c, 3.1.3.3, 3.1.3.4, 5.27.1.6."""

import pytest

from iolane.devices.nvme.spec import AdminOpcode, FeatureId, IoOpcode
from iolane.model.interrupts import InterruptIndex
from iolane.model.region import RegionIndex
from iolane.model.workers import Workers
from iolane.testing.nvme_driver import INTMC, INTMS, NvmeDriver
from tests.unit.devices.nvme.conftest import Make

MSIX, MSI, INTX = InterruptIndex.MSIX, InterruptIndex.MSI, InterruptIndex.INTX


def flush(driver: NvmeDriver, qid: int = 1, count: int = 1) -> None:
    driver.submit(qid, *(driver.entry(IoOpcode.FLUSH, nsid=1) for _ in range(count)))


def started(make: Make, index: InterruptIndex) -> NvmeDriver:
    driver = make(index=index, presentation={MSIX: "auto", MSI: "msi", INTX: "intx"}[index])
    driver.enable()
    driver.create_queues(3, vectors=index is not INTX)
    for vector in range(len(driver.event_fds)):
        driver.interrupts(vector)
    return driver


def pin(driver: NvmeDriver) -> int:
    """STATUS.INTERRUPT."""
    return driver.region(RegionIndex.CONFIG).read(6, 2) >> 3 & 1


@pytest.mark.parametrize("index", [MSIX, MSI])
def test_each_queue_raises_its_own_vector(make: Make, index: InterruptIndex) -> None:
    driver = started(make, index)
    flush(driver, 2)
    flush(driver, 3)
    assert [driver.interrupts(vector) for vector in range(4)] == [0, 0, 1, 1]


@pytest.mark.parametrize("index", [MSIX, MSI, INTX])
def test_commands_complete_by_interrupts_with_workers(
    make: Make, workers: Workers, index: InterruptIndex
) -> None:
    driver = make(workers=workers, index=index, presentation={MSIX: "auto", MSI: "msi", INTX: "intx"}[index])
    driver.enable()
    driver.create_queues(2, vectors=index is not INTX)
    for number in range(30):
        driver.check(driver.write(number, bytes([number]) * 512, qid=1 + number % 2))
    assert driver.read(0, 30) == b"".join(bytes([number]) * 512 for number in range(30))


def test_one_interrupt_for_a_batch(make: Make) -> None:
    driver = started(make, MSIX)
    flush(driver, 1, 20)
    assert driver.interrupts(1) == 1
    assert driver.reap(1) == 20


def test_the_pin_is_a_level(make: Make) -> None:
    driver = started(make, INTX)
    assert pin(driver) == 0
    flush(driver, 1, 2)
    assert pin(driver) == 1
    assert driver.interrupts(0) == 1
    driver.reap(1, limit=1)
    assert pin(driver) == 1
    driver.reap(1)
    assert pin(driver) == 0
    driver.interrupts(0)
    flush(driver, 2)
    assert driver.interrupts(0) == 1


def test_interrupt_masks_of_the_pin(make: Make) -> None:
    driver = started(make, INTX)
    driver.write_register(INTMS, 0b101)
    assert driver.read_register(INTMS) == driver.read_register(INTMC) == 0b101
    flush(driver)
    assert (pin(driver), driver.interrupts(0)) == (0, 0)
    driver.write_register(INTMC, 1)
    assert driver.read_register(INTMS) == 0b100
    assert (pin(driver), driver.interrupts(0)) == (1, 1)
    driver.write_register(INTMS, 1)
    assert pin(driver) == 0


def test_interrupt_masks_hold_msi_back(make: Make) -> None:
    driver = started(make, MSI)
    driver.write_register(INTMS, 0b10)
    flush(driver, 1, 3)
    flush(driver, 2)
    assert [driver.interrupts(vector) for vector in range(3)] == [0, 0, 1]
    driver.write_register(INTMC, 0b10)
    assert driver.interrupts(1) == 1
    driver.reap(1)
    driver.write_register(INTMS, 0b10)
    flush(driver)
    driver.reap(1)
    driver.write_register(INTMC, 0b10)
    assert driver.interrupts(1) == 0, "the host has seen it already"


def test_a_queue_without_interrupts_raises_none(driver: NvmeDriver) -> None:
    ring = driver.rings[2]
    driver.check(
        driver.admin(AdminOpcode.DELETE_SQ, cdw10=2),
        driver.admin(AdminOpcode.DELETE_CQ, cdw10=2),
        driver.admin(AdminOpcode.CREATE_CQ, prp1=ring.cq, cdw10=63 << 16 | 2, cdw11=2 << 16 | 1),
        driver.admin(AdminOpcode.CREATE_SQ, prp1=ring.sq, cdw10=63 << 16 | 2, cdw11=2 << 16 | 1),
    )
    ring.tail = ring.head = 0
    driver.interrupts(2)
    flush(driver, 2)
    assert driver.interrupts(2) == 0
    assert driver.reap(2) == 1


def coalesce(driver: NvmeDriver, threshold: int, time: int) -> None:
    driver.check(
        driver.admin(
            AdminOpcode.SET_FEATURES, cdw10=FeatureId.INTERRUPT_COALESCING, cdw11=time << 8 | threshold
        )
    )


def test_interrupts_are_coalesced_by_number_and_by_time(make: Make) -> None:
    """Base 5.27.1.6: the threshold is 0's based, the time counts in 100 us."""
    driver = started(make, MSIX)
    coalesce(driver, 3, 5)
    flush(driver, 1, 3)
    assert driver.interrupts(1) == 0
    flush(driver, 1)
    assert driver.interrupts(1) == 1
    flush(driver, 1)
    driver.device.clock.advance(499_999)
    assert driver.interrupts(1) == 0
    driver.device.clock.advance(1)
    assert driver.interrupts(1) == 1
    driver.admin(AdminOpcode.GET_FEATURES, cdw10=FeatureId.ARBITRATION)
    assert driver.interrupts(0) >= 1, "never for the Admin Queue"


def test_coalescing_is_switched_off_by_vector_and_held_interrupts_are_sent(make: Make) -> None:
    driver = started(make, MSIX)
    coalesce(driver, 9, 255)
    driver.check(driver.admin(AdminOpcode.SET_FEATURES, cdw10=FeatureId.INTERRUPT_VECTOR, cdw11=1 << 16 | 1))
    flush(driver, 1)
    flush(driver, 2)
    assert [driver.interrupts(vector) for vector in (1, 2)] == [1, 0]
    coalesce(driver, 0, 0)
    assert driver.interrupts(2) == 1
    coalesce(driver, 9, 255)
    flush(driver, 2)
    driver.device.pause()
    assert driver.interrupts(2) == 1
    driver.device.resume()
