"""Enabling, resets and shutdown: NVM Express Base 2.0c, 3.1.3, 3.5 to 3.7."""

import os
from collections.abc import Sequence

import pytest

from iolane.backends.memory import MemoryBackend
from iolane.devices.nvme.arbitration import IN_FLIGHT_LIMIT
from iolane.devices.nvme.registers import NvmeRegisters
from iolane.devices.nvme.spec import AdminOpcode, IoOpcode, Status
from iolane.model.region import RegionIndex
from iolane.model.reset import ResetKind
from iolane.model.workers import Workers
from iolane.testing.nvme_driver import ACQ, AQA, ASQ, CC, CSTS, ENABLE, Gate, NvmeDriver
from tests.unit.devices.nvme.conftest import DISK, Make

NORMAL, ABRUPT = 1 << 14, 2 << 14


class Gated(MemoryBackend):
    """Reads and flushes wait at gates."""

    def __init__(self) -> None:
        super().__init__(DISK)
        self.read_gate, self.flush_gate = Gate(), Gate()

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self.read_gate.pass_through()
        super().readv(offset, buffers)

    def flush(self) -> None:
        self.flush_gate.pass_through()


@pytest.fixture
def gated(make: Make, workers: Workers) -> tuple[NvmeDriver, Gated]:
    backend = Gated()
    driver = make(workers=workers, backend=backend)
    driver.enable()
    driver.create_queues(2)
    return driver, backend


def shutdown_status(driver: NvmeDriver) -> int:
    return driver.read_register(CSTS) >> 2 & 3


def test_capabilities_say_what_is_there(make: Make) -> None:
    driver = make()
    capabilities = driver.read_register(0, 8)
    assert capabilities & 0xFFFF == 1023
    assert capabilities >> 16 & 1
    assert capabilities >> 32 & 0xF == 0
    assert capabilities >> 37 & 0xFF == 0x41
    assert capabilities == driver.read_register(0) | driver.read_register(4) << 32
    assert driver.read_register(CSTS) == 0
    assert driver.read_register(0x3C) == 0


def test_every_register_fits_into_the_notation() -> None:
    assert NvmeRegisters.layout.storage_size == 0x2000
    assert "DOORBELL" in NvmeRegisters.table()


@pytest.mark.parametrize(
    ("attributes", "configuration", "base"),
    [
        (0x001F0000, ENABLE, 0x100000),
        (0x0000001F, ENABLE, 0x100000),
        (0x001F001F, ENABLE | 5 << 7, 0x200000),
        (0x001F001F, ENABLE | 4 << 7, 0x101000),
        (0x001F001F, ENABLE | 1 << 11, 0x100000),
        (0x001F001F, ENABLE | 1 << 4, 0x100000),
        (0x001F001F, ENABLE | 7 << 4, 0x100000),
    ],
)
def test_an_impossible_enable_is_fatal_until_it_is_taken_back(
    make: Make, attributes: int, configuration: int, base: int
) -> None:
    driver = make()
    driver.write_register(AQA, attributes)
    driver.write_register(ASQ, base, 8)
    driver.write_register(ACQ, base, 8)
    driver.write_register(CC, configuration)
    assert driver.read_register(CSTS) & 3 == 2
    driver.write_register(CC, configuration & ~1)
    assert driver.read_register(CSTS) == 0
    driver.enable(configuration=ENABLE | 6 << 4)
    driver.identify(1)


def test_a_controller_reset_takes_queues_and_leaves_the_admin_registers(driver: NvmeDriver) -> None:
    """Base 3.7.2."""
    kept = [driver.read_register(register, 8) for register in (ASQ, ACQ)]
    driver.write_register(0x0C, 0xFF)
    driver.disable()
    assert not driver.device.state.submission
    assert not driver.device.state.completion
    assert [driver.read_register(register, 8) for register in (ASQ, ACQ)] == kept
    assert driver.read_register(0x0C) == 0
    driver.enable()
    driver.create_queues(2)
    driver.read(0, 1)


def test_doorbells_of_a_controller_that_is_off_do_nothing(make: Make) -> None:
    driver = make()
    for doorbell in range(8):
        driver.write_register(0x1000 + 4 * doorbell, 1)
    assert driver.read_register(CSTS) == 0


def test_commands_run_while_the_guest_goes_on(gated: tuple[NvmeDriver, Gated]) -> None:
    driver, backend = gated
    address = driver.memory.allocate(4096)
    slow = driver.submit(1, driver.transfer(IoOpcode.READ, 0, 8, address))
    backend.read_gate.arrived.acquire()
    driver.check(driver.write(99, bytes(512), qid=2))
    driver.identify(1)
    assert not driver.reap(1)
    backend.read_gate.open()
    driver.check(*driver.wait(1, slow))


def test_a_reset_is_over_when_no_command_touches_memory_any_more(gated: tuple[NvmeDriver, Gated]) -> None:
    """Base 3.5.1: the host waits for CSTS.RDY to be 0 before it frees the memory."""
    driver, backend = gated
    address = driver.memory.allocate(4096)
    driver.submit(1, *(driver.transfer(IoOpcode.READ, 0, 8, address) for _ in range(8)))
    backend.read_gate.arrived.acquire()
    driver.write_register(CC, ENABLE & ~1)
    assert driver.ready
    backend.read_gate.open()
    driver.until_ready(False)
    driver.enable()
    driver.create_queues(1)
    assert not driver.rings[1].done
    driver.read(0, 8)
    driver.reap(1)
    assert not driver.rings[1].done


def test_enabling_before_the_reset_is_over_waits_for_it(gated: tuple[NvmeDriver, Gated]) -> None:
    driver, backend = gated
    driver.submit(1, driver.transfer(IoOpcode.READ, 0, 8, driver.memory.allocate(4096)))
    backend.read_gate.arrived.acquire()
    driver.write_register(CC, ENABLE & ~1)
    driver.write_register(CC, ENABLE)
    backend.read_gate.open()
    with driver.device.quiesced():
        assert driver.ready
    assert set(driver.device.state.submission) == {0}


def test_shutdown_waits_for_commands_and_flushes(gated: tuple[NvmeDriver, Gated]) -> None:
    """Base 3.6."""
    driver, backend = gated
    cids = driver.submit(1, driver.transfer(IoOpcode.READ, 0, 8, driver.memory.allocate(4096)))
    backend.read_gate.arrived.acquire()
    driver.write_register(CC, ENABLE | NORMAL)
    assert shutdown_status(driver) == 1
    backend.read_gate.open()
    driver.check(*driver.wait(1, cids))
    backend.flush_gate.arrived.acquire()
    assert shutdown_status(driver) == 1
    backend.flush_gate.open()
    with driver.device.quiesced():
        assert shutdown_status(driver) == 2
    driver.disable()
    assert shutdown_status(driver) == 0


@pytest.mark.parametrize("how", [NORMAL, ABRUPT])
def test_shutdown_of_a_controller_that_is_off(make: Make, how: int) -> None:
    driver = make()
    driver.write_register(CC, how)
    assert shutdown_status(driver) == 2


def test_shutdown_and_disable_at_once(make: Make, workers: Workers) -> None:
    backend = Gated()
    driver = make(workers=workers, backend=backend)
    driver.enable()
    driver.create_queues(1)
    driver.submit(1, driver.transfer(IoOpcode.READ, 0, 8, driver.memory.allocate(4096)))
    backend.read_gate.arrived.acquire()
    driver.write_register(CC, ENABLE & ~1 | NORMAL)
    backend.read_gate.open()
    backend.flush_gate.open()
    with driver.device.quiesced():
        assert driver.read_register(CSTS) == 2 << 2


@pytest.mark.parametrize("kind", list(ResetKind))
def test_resets_of_the_function(driver: NvmeDriver, kind: ResetKind) -> None:
    driver.check(driver.write(1, b"k" * 512))
    device = driver.device
    device.reset(kind)
    assert driver.read_register(CSTS) == driver.read_register(CC) == 0
    assert not device.state.submission
    unsafe = device.state.health.unsafe_shutdowns
    assert unsafe == (kind is ResetKind.CONVENTIONAL)
    driver.region(RegionIndex.CONFIG).write(4, 2, 6)
    driver.enable()
    driver.create_queues(1)
    assert driver.read(1, 1) == b"k" * 512


def test_a_reset_of_the_function_waits_for_commands(gated: tuple[NvmeDriver, Gated]) -> None:
    driver, backend = gated
    driver.submit(1, *(driver.transfer(IoOpcode.READ, 0, 8, driver.memory.base) for _ in range(20)))
    backend.read_gate.arrived.acquire()
    backend.read_gate.open()
    driver.device.reset(ResetKind.FLR)
    assert not driver.device.commands.active
    assert driver.device.tasks.running == 0


def test_deleting_a_queue_ends_its_commands_first(gated: tuple[NvmeDriver, Gated]) -> None:
    """Base 5.7: what has not begun is aborted, what has begun completes, then the deletion."""
    driver, backend = gated
    entries = [driver.transfer(IoOpcode.READ, 0, 1, driver.memory.base) for _ in range(12)]
    cids = driver.submit(1, *entries)
    for _ in range(4):
        backend.read_gate.arrived.acquire()
    deletion = driver.submit(0, driver.entry(AdminOpcode.DELETE_SQ, cdw10=1))
    driver.reap(0)
    assert not driver.rings[0].done
    backend.read_gate.open()
    driver.check(*driver.wait(0, deletion))
    driver.reap(1)
    statuses = [driver.rings[1].done[cid].status for cid in cids]
    assert statuses.count(Status.ABORTED_SQ_DELETION) == 8
    assert statuses.count(0) == 4
    driver.check(driver.admin(AdminOpcode.DELETE_CQ, cdw10=1))
    driver.create_queue(1, 64, 1)
    driver.read(0, 1)


def test_abort_ends_what_has_not_begun(gated: tuple[NvmeDriver, Gated]) -> None:
    """Base 5.1."""
    driver, backend = gated
    cids = driver.submit(1, *(driver.transfer(IoOpcode.READ, 0, 1, driver.memory.base) for _ in range(6)))
    for _ in range(4):
        backend.read_gate.arrived.acquire()
    results = [driver.admin(AdminOpcode.ABORT, cdw10=cid << 16 | 1).result for cid in cids]
    assert sorted(results) == [0, 0, 1, 1, 1, 1]
    backend.read_gate.open()
    statuses = [completion.status for completion in driver.wait(1, cids)]
    assert [status == Status.ABORT_REQUESTED for status in statuses] == [result == 0 for result in results]


def test_more_commands_than_run_at_once(make: Make, workers: Workers) -> None:
    driver = make(workers=workers, memory_size=32 << 20)
    driver.enable()
    driver.create_queues(2, entries=1024)
    data = os.urandom(1000 * 512)
    base = driver.memory.allocate(len(data))
    driver.memory.write(base, data)
    for qid in (1, 2):
        writes = [
            driver.transfer(IoOpcode.WRITE, 1000 * qid + number, 1, base + 512 * number)
            for number in range(1000)
        ]
        driver.submit(qid, *writes)
        driver.check(*driver.wait(qid, [entry.cid for entry in writes]))
    assert driver.read(1000, 2000) == data * 2
    snapshot = driver.device.describe()
    assert snapshot["queue1_commands"] == 1001
    assert isinstance(snapshot["io_latency_p99_us"], float)


def test_commands_in_flight_are_bounded(make: Make, workers: Workers) -> None:
    backend = Gated()
    driver = make(workers=workers, backend=backend)
    driver.enable()
    driver.create_queues(2, entries=1024)
    cids = {
        qid: driver.submit(
            qid, *(driver.transfer(IoOpcode.READ, 0, 1, driver.memory.base) for _ in range(500))
        )
        for qid in (1, 2)
    }
    assert driver.device.commands.io_count == IN_FLIGHT_LIMIT
    assert driver.device.commands.count(2) == 0
    backend.read_gate.open()
    for qid, expected in cids.items():
        driver.check(*driver.wait(qid, expected))


def test_a_pause_holds_new_commands_back(make: Make, workers: Workers) -> None:
    driver = make(workers=workers)
    driver.enable()
    driver.create_queues(1)
    driver.device.pause()
    cids = driver.submit(1, driver.transfer(IoOpcode.READ, 0, 1, driver.memory.base))
    assert not driver.reap(1)
    driver.device.resume()
    driver.check(*driver.wait(1, cids))


def test_the_disk_and_the_queues_survive_a_disconnect(driver: NvmeDriver) -> None:
    device = driver.device
    device.disconnect()
    assert driver.ready
    with device.lock:
        device.dma.map(driver.memory.base, len(driver.memory.buffer), buffer=driver.memory.buffer)
    cids = driver.submit(1, driver.entry(IoOpcode.FLUSH, nsid=1))
    driver.reap(1)
    driver.check(driver.rings[1].done[cids[0]])


def test_an_unreachable_completion_queue_is_fatal(driver: NvmeDriver) -> None:
    far = driver.memory.base + len(driver.memory.buffer)
    driver.check(
        driver.admin(AdminOpcode.CREATE_CQ, prp1=far, cdw10=63 << 16 | 3, cdw11=1),
        driver.admin(AdminOpcode.CREATE_SQ, prp1=driver.rings[1].sq, cdw10=63 << 16 | 3, cdw11=3 << 16 | 1),
    )
    driver.place(1, [driver.entry(IoOpcode.FLUSH, nsid=1)])
    driver.write_register(0x1000 + 8 * 3, 1)
    assert driver.fatal
    assert "completion queue 3" in str(driver.device.describe()["fatal"])
