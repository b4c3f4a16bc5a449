"""Shadow doorbells: NVM Express Base 2.0c, 5.8 and annex B.5."""

import struct

import pytest

from iolane.devices.nvme.spec import AdminOpcode, IoOpcode, Status
from iolane.model.interrupts import InterruptIndex
from iolane.model.workers import Workers
from iolane.testing.nvme_driver import DOORBELLS, NvmeDriver
from tests.unit.devices.nvme.conftest import Make


class ShadowDriver:
    """Writes doorbells into memory, rings as EventIdx says; leaves queue 0 out, as Linux does."""

    def __init__(self, driver: NvmeDriver) -> None:
        self.driver = driver
        self.rung = 0
        self.pages = driver.memory.allocate(4096), driver.memory.allocate(4096)
        driver.check(driver.admin(AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=self.pages[0], prp2=self.pages[1]))
        self.original = driver.write_register
        driver.write_register = self.write_register  # type: ignore[method-assign]

    def slot(self, page: int, doorbell: int) -> int:
        value: int = struct.unpack("<I", self.driver.memory.read(self.pages[page] + 4 * doorbell, 4))[0]
        return value

    def write_register(self, offset: int, value: int, size: int = 4) -> None:
        doorbell = (offset - DOORBELLS) // 4
        if doorbell < 2:
            self.original(offset, value, size)
            return
        old = self.slot(0, doorbell)
        self.driver.memory.write(self.pages[0] + 4 * doorbell, struct.pack("<I", value))
        event = self.slot(1, doorbell)
        if (value - event - 1) & 0xFFFF < (value - old) & 0xFFFF:
            self.rung += 1
            self.original(offset, value, size)


@pytest.mark.parametrize("with_workers", [False, True])
@pytest.mark.parametrize("index", [InterruptIndex.MSIX, InterruptIndex.INTX])
def test_everything_completes_with_doorbells_in_memory(
    make: Make, workers: Workers, with_workers: bool, index: InterruptIndex
) -> None:
    driver = make(
        workers=workers if with_workers else None,
        index=index,
        presentation="intx" if index is InterruptIndex.INTX else "auto",
    )
    driver.enable()
    driver.create_queues(2, entries=8, vectors=index is InterruptIndex.MSIX)
    driver.read(0, 1)
    ShadowDriver(driver)
    for number in range(60):
        driver.check(driver.write(number, bytes([number]) * 512, qid=1 + number % 2))
    assert driver.read(0, 60) == b"".join(bytes([number]) * 512 for number in range(60))
    driver.check(driver.admin(AdminOpcode.DELETE_SQ, cdw10=2), driver.admin(AdminOpcode.DELETE_CQ, cdw10=2))
    driver.disable()
    driver.enable()
    assert driver.device.state.shadow is None


def test_a_host_is_not_asked_to_ring_while_its_commands_are_fetched(make: Make) -> None:
    driver = make()
    driver.enable()
    driver.create_queues(1)
    shadow = ShadowDriver(driver)
    device = driver.device
    device.pause()
    cids = []
    for _ in range(10):
        cids += driver.submit(1, driver.entry(IoOpcode.FLUSH, nsid=1))
    assert shadow.rung == 1
    device.resume()
    driver.check(*driver.wait(1, cids))
    assert driver.device.state.submission[1].tail == 10
    assert shadow.slot(1, 2) == 10


def test_a_tail_that_comes_while_the_event_index_is_written_is_seen(make: Make) -> None:
    """After the store of EventIdx the tail is looked at once more."""
    driver = make()
    driver.enable()
    driver.create_queues(1)
    shadow = ShadowDriver(driver)
    store = driver.device.shadow._store
    late: list[int] = []

    def racing(page: int, doorbell: int, value: int) -> None:
        if doorbell == 2 and not late:  # the host submits just before it could see the new EventIdx
            late.extend(driver.submit(1, driver.entry(IoOpcode.FLUSH, nsid=1)))
        store(page, doorbell, value)

    driver.device.shadow._store = racing  # type: ignore[method-assign]
    first = driver.submit(1, driver.entry(IoOpcode.FLUSH, nsid=1))
    driver.reap(1)
    assert {*first, *late} <= set(driver.rings[1].done)
    assert shadow.rung <= 2


def test_heads_that_come_while_the_event_index_is_written_are_seen(make: Make) -> None:
    """The host rings for the successor of EventIdx only, so two more heads in a row would be missed."""
    driver = make()
    driver.enable()
    driver.create_queues(1)
    shadow = ShadowDriver(driver)
    driver.submit(1, *(driver.entry(IoOpcode.FLUSH, nsid=1) for _ in range(6)))
    store = driver.device.shadow._store

    def racing(page: int, doorbell: int, value: int) -> None:
        if doorbell == 3:
            driver.reap(1, limit=1)
        store(page, doorbell, value)

    driver.device.shadow._store = racing  # type: ignore[method-assign]
    driver.reap(1, limit=1)
    assert driver.rings[1].head == driver.device.state.completion[1].head == 6
    assert shadow.rung <= 2


def test_a_full_completion_queue_asks_for_its_head(make: Make) -> None:
    driver = make()
    driver.enable()
    driver.create_queue(1, 4, 1)
    ShadowDriver(driver)
    cids: list[int] = []
    for _ in range(20):
        cids += driver.submit(1, *(driver.entry(IoOpcode.FLUSH, nsid=1) for _ in range(3)))
        assert driver.reap(1) == 3
    assert set(cids) <= set(driver.rings[1].done)


def test_a_disconnect_leaves_the_controller_ready(make: Make) -> None:
    """What came into memory meanwhile is fetched when the host is back."""
    driver = make()
    driver.enable()
    driver.create_queues(1)
    ShadowDriver(driver)
    device, memory = driver.device, driver.memory
    device.pause()
    cids = driver.submit(1, driver.entry(IoOpcode.FLUSH, nsid=1))
    device.disconnect()
    device.resume()
    assert not driver.fatal
    with device.lock:
        device.dma.map(memory.base, len(memory.buffer), buffer=memory.buffer)
    driver.submit(0, driver.entry(AdminOpcode.GET_FEATURES, cdw10=1))
    driver.reap(1)
    driver.check(driver.rings[1].done[cids[0]])


@pytest.mark.parametrize("doorbell", [2, 3])
def test_an_impossible_value_is_reported_once(make: Make, doorbell: int) -> None:
    driver = make()
    driver.enable()
    driver.create_queues(1)
    shadow = ShadowDriver(driver)
    for _ in range(5):
        driver.memory.write(shadow.pages[0] + 4 * doorbell, struct.pack("<I", 0xFFFFFFF0))
        shadow.original(DOORBELLS + 4 * doorbell, 1)
    assert driver.device.counters["invalid_doorbells"] == 1
    shadow.original(DOORBELLS + 4 * doorbell, 64)
    assert driver.device.counters["invalid_doorbells"] == 2
    assert not driver.fatal


def test_buffers_are_pages_in_memory(driver: NvmeDriver) -> None:
    page = driver.memory.allocate(4096)
    config = AdminOpcode.DOORBELL_BUFFER_CONFIG
    for prp1, prp2 in ((page + 8, page), (page, page + 8), (0, page), (page, 0)):
        assert driver.admin(config, prp1=prp1, prp2=prp2).status == Status.INVALID_FIELD
    far = driver.memory.base + len(driver.memory.buffer)
    assert driver.admin(config, prp1=page, prp2=far).status == Status.DATA_TRANSFER_ERROR
    assert driver.device.state.shadow is None


def test_buffers_that_go_away_are_fatal(make: Make) -> None:
    driver = make()
    driver.enable()
    page = driver.memory.base + len(driver.memory.buffer)
    with driver.device.lock:
        driver.device.dma.map(page, 8192, buffer=bytearray(8192))
    config = AdminOpcode.DOORBELL_BUFFER_CONFIG
    driver.check(driver.admin(config, prp1=page, prp2=page + 4096))
    driver.device.dma.unmap(page, 8192)
    driver.submit(0, driver.entry(AdminOpcode.IDENTIFY, prp1=driver.memory.base, cdw10=1))
    assert driver.fatal
