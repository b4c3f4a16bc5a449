"""I/O commands: NVM Command Set 1.0c, 3.2."""

import errno
import os
import struct
from collections.abc import Sequence

import pytest

from iolane.backends.memory import MemoryBackend
from iolane.devices.nvme.spec import AdminOpcode, FeatureId, IoOpcode, Status
from iolane.model.region import RegionIndex
from iolane.testing.nvme_driver import NvmeDriver
from iolane.testing.power_cut import PowerCut
from tests.unit.devices.nvme.conftest import DISK, Make

FUA = 1 << 30
DEALLOCATE_AFTER_ZEROES = 1 << 25


@pytest.mark.parametrize("lba_size", [512, 4096])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 17, 256])
def test_what_is_written_is_read(make: Make, lba_size: int, size: int) -> None:
    driver = make(lba_size=lba_size, memory_size=16 << 20)
    driver.enable()
    driver.create_queues(1)
    data = os.urandom(size * 4096)
    driver.check(driver.write(8, data))
    assert driver.read(8, len(data) // lba_size) == data
    assert driver.read(0, 1) == bytes(lba_size)


def test_data_may_start_inside_a_page(driver: NvmeDriver) -> None:
    data = os.urandom(64 * 512)
    address = driver.memory.allocate(len(data) + 4096) + 2052
    driver.memory.write(address, data)
    driver.check(driver.wait(1, driver.submit(1, driver.transfer(IoOpcode.WRITE, 5, 64, address)))[0])
    assert driver.read(5, 64) == data


@pytest.mark.parametrize("shift", [1, 4])
def test_larger_memory_pages(make: Make, shift: int) -> None:
    """CC.MPS: PRP entries are of pages of 4 KiB << MPS."""
    page = 4096 << shift
    driver = make()
    driver.memory.page = page
    driver.enable(configuration=4 << 20 | 6 << 16 | shift << 7 | 1)
    driver.create_queues(1)
    data = os.urandom(4 * page)
    address = driver.memory.allocate(len(data))
    driver.memory.write(address, data)
    for opcode in (IoOpcode.WRITE, IoOpcode.READ):
        prp1, prp2 = driver.prps(address, len(data))
        completion = driver.io(opcode, prp1=prp1, prp2=prp2, cdw10=0, cdw12=len(data) // 512 - 1)
        driver.check(completion)
    assert driver.memory.read(address, len(data)) == data


@pytest.mark.parametrize(
    ("opcode", "fields", "status"),
    [
        (IoOpcode.READ, {"cdw10": DISK // 512}, Status.LBA_OUT_OF_RANGE),
        (IoOpcode.READ, {"cdw10": DISK // 512 - 1, "cdw12": 1}, Status.LBA_OUT_OF_RANGE),
        (IoOpcode.READ, {"cdw10": 0xFFFFFFFF, "cdw11": 0xFFFFFFFF}, Status.LBA_OUT_OF_RANGE),
        (IoOpcode.WRITE_ZEROES, {"cdw10": DISK // 512}, Status.LBA_OUT_OF_RANGE),
        (IoOpcode.READ, {"nsid": 0}, Status.INVALID_NAMESPACE),
        (IoOpcode.READ, {"nsid": 2}, Status.INVALID_NAMESPACE),
        (IoOpcode.READ, {"nsid": 0xFFFFFFFF}, Status.INVALID_NAMESPACE),
        (IoOpcode.READ, {"flags": 1}, Status.INVALID_FIELD),
        (IoOpcode.READ, {"cdw12": 1 << 29}, Status.INVALID_FIELD),
        (IoOpcode.READ, {"cdw12": 0xFFF}, Status.INVALID_FIELD),
        (IoOpcode.READ, {"prp1": 0x10_0002}, Status.INVALID_PRP_OFFSET),
        (IoOpcode.READ, {"prp1": 0x1000}, Status.DATA_TRANSFER_ERROR),
        (IoOpcode.WRITE, {"prp1": 0xFFFFFFFFFFFFF000}, Status.DATA_TRANSFER_ERROR),
        (0x04, {}, Status.INVALID_OPCODE),
        (0xFF, {}, Status.INVALID_OPCODE),
    ],
)
def test_what_is_wrong_with_a_command(
    driver: NvmeDriver, opcode: int, fields: dict[str, int], status: Status
) -> None:
    values = {"prp1": driver.memory.base, **fields}
    assert driver.io(opcode, **values).status == status
    assert driver.device.state.errors[0].status == status
    driver.check(driver.io(IoOpcode.FLUSH))


def test_mdts_bounds_transfers_and_its_limit_works(driver: NvmeDriver) -> None:
    address = driver.memory.allocate(1 << 20)
    largest = driver.transfer(IoOpcode.READ, 0, 2048, address)
    driver.check(driver.wait(1, driver.submit(1, largest))[0])
    larger = driver.entry(IoOpcode.READ, nsid=1, prp1=address, prp2=address, cdw12=2048)
    assert driver.wait(1, driver.submit(1, larger))[0].status == Status.INVALID_FIELD


class Failing(MemoryBackend):
    """Fails with an errno where it is told to."""

    def __init__(self) -> None:
        super().__init__(DISK)
        self.errno = 0

    def _check(self, offset: int, length: int, *, write: bool = False) -> None:
        if self.errno:
            raise OSError(self.errno, os.strerror(self.errno))
        super()._check(offset, length, write=write)

    def flush(self) -> None:
        self._check(0, 0)


@pytest.mark.parametrize(
    ("code", "opcode", "status"),
    [
        (errno.EIO, IoOpcode.READ, Status.UNRECOVERED_READ),
        (errno.EIO, IoOpcode.COMPARE, Status.UNRECOVERED_READ),
        (errno.EIO, IoOpcode.WRITE, Status.WRITE_FAULT),
        (errno.EIO, IoOpcode.WRITE_ZEROES, Status.WRITE_FAULT),
        (errno.EIO, IoOpcode.FLUSH, Status.WRITE_FAULT),
        (errno.ENOSPC, IoOpcode.WRITE, Status.CAPACITY_EXCEEDED),
        (errno.EDQUOT, IoOpcode.WRITE, Status.CAPACITY_EXCEEDED),
        (errno.EROFS, IoOpcode.WRITE, Status.NAMESPACE_WRITE_PROTECTED),
        (errno.EFAULT, IoOpcode.READ, Status.DATA_TRANSFER_ERROR),
    ],
)
def test_errors_of_the_back_end_reach_the_guest(
    make: Make, code: int, opcode: IoOpcode, status: Status
) -> None:
    backend = Failing()
    driver = make(backend=backend)
    driver.enable()
    driver.create_queues(1)
    backend.errno = code
    address = driver.memory.allocate(4096)
    completion = driver.io(opcode, prp1=address, cdw10=77)
    assert completion.status == status
    assert completion.do_not_retry == (status not in (*_RETRIED,))
    assert driver.device.state.health.media_errors == (code == errno.EIO)
    backend.errno = 0
    driver.check(driver.io(opcode, prp1=address))


_RETRIED = (Status.UNRECOVERED_READ, Status.WRITE_FAULT, Status.DATA_TRANSFER_ERROR)


def test_a_bug_in_a_back_end_is_an_internal_error(make: Make) -> None:
    class Broken(MemoryBackend):
        def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
            raise RuntimeError("a bug")

    driver = make(backend=Broken(DISK))
    driver.enable()
    driver.create_queues(1)
    assert driver.io(IoOpcode.READ, prp1=driver.memory.base).status == Status.INTERNAL_ERROR
    assert driver.device.error_count == 1


def test_compare(driver: NvmeDriver) -> None:
    """NVM Command Set 3.2.1."""
    data = os.urandom(4096)
    driver.check(driver.write(8, data))
    address = driver.memory.allocate(4096)
    driver.memory.write(address, data)
    same = driver.transfer(IoOpcode.COMPARE, 8, 8, address)
    driver.check(driver.wait(1, driver.submit(1, same))[0])
    driver.memory.write(address + 4095, bytes([data[-1] ^ 1]))
    other = driver.transfer(IoOpcode.COMPARE, 8, 8, address)
    assert driver.wait(1, driver.submit(1, other))[0].status == Status.COMPARE_FAILURE


@pytest.mark.parametrize("flags", [0, DEALLOCATE_AFTER_ZEROES, FUA])
def test_write_zeroes(driver: NvmeDriver, flags: int) -> None:
    """NVM Command Set 3.2.8; its length is not bounded by MDTS."""
    driver.check(driver.write(0, b"\xff" * 8192))
    driver.check(driver.io(IoOpcode.WRITE_ZEROES, cdw10=1, cdw12=flags | 13))
    assert driver.read(0, 16) == b"\xff" * 512 + bytes(14 * 512) + b"\xff" * 512
    driver.check(driver.io(IoOpcode.WRITE_ZEROES, cdw10=0, cdw12=DISK // 512 - 1))


def deallocate(driver: NvmeDriver, ranges: list[tuple[int, int]], *, attributes: int = 4) -> int:
    address = driver.memory.allocate(4096)
    driver.memory.write(address, b"".join(struct.pack("<IIQ", 0, count, lba) for lba, count in ranges))
    completion = driver.io(
        IoOpcode.DATASET_MANAGEMENT, prp1=address, cdw10=max(len(ranges), 1) - 1, cdw11=attributes
    )
    return completion.status


def test_dataset_management_deallocates_its_ranges(driver: NvmeDriver) -> None:
    """NVM Command Set 3.2.3."""
    driver.check(driver.write(0, b"\xff" * 8192))
    assert deallocate(driver, [(1, 2), (5, 0), (10, 6)]) == 0
    expected = b"".join(
        (bytes if lba in (1, 2, *range(10, 16)) else b"\xff".__mul__)(512) for lba in range(16)
    )
    assert driver.read(0, 16) == expected
    assert deallocate(driver, [(0, 1)] * 256) == 0
    assert deallocate(driver, [(3, 1)], attributes=1) == 0
    assert driver.read(3, 1) == b"\xff" * 512


def test_dataset_management_checks_every_range_first(driver: NvmeDriver) -> None:
    driver.check(driver.write(0, b"\xff" * 512))
    assert deallocate(driver, [(0, 1), (DISK // 512 - 1, 2)]) == Status.LBA_OUT_OF_RANGE
    assert deallocate(driver, [(0, 1), ((1 << 64) - 1, 1)]) == Status.LBA_OUT_OF_RANGE
    assert driver.read(0, 1) == b"\xff" * 512


def protected(driver: NvmeDriver) -> None:
    address = driver.memory.allocate(4096)
    for opcode in (IoOpcode.WRITE, IoOpcode.WRITE_ZEROES):
        assert driver.io(opcode, prp1=address).status == Status.NAMESPACE_WRITE_PROTECTED
    assert deallocate(driver, [(0, 1)]) == Status.NAMESPACE_WRITE_PROTECTED
    assert driver.identify(0, 1)[99] == 1
    assert driver.identify(8, 1)[8] == 1
    driver.read(0, 1)
    driver.check(driver.io(IoOpcode.FLUSH))


def test_a_read_only_image_is_a_write_protected_namespace(make: Make) -> None:
    driver = make(backend=MemoryBackend(DISK, read_only=True))
    driver.enable()
    driver.create_queues(1)
    protected(driver)


def test_the_host_may_protect_a_namespace_while_it_is_used(driver: NvmeDriver) -> None:
    driver.device.set_write_protected(1, True)
    protected(driver)
    driver.device.set_write_protected(1, False)
    driver.check(driver.write(0, bytes(512)))


def durable(make: Make, *caches: int, **fields: int) -> bool:
    """Whether a completed write survives a power cut after the cache was switched so."""
    backend = PowerCut(MemoryBackend(DISK))
    driver = make(backend=backend)
    driver.enable()
    driver.create_queues(1)
    for on in caches:
        switch_cache(driver, on)
    driver.check(driver.write(3, b"x" * 512, **fields))
    backend.cut()
    backend.restore()
    return driver.read(3, 1) == b"x" * 512


def switch_cache(driver: NvmeDriver, on: int) -> None:
    driver.check(driver.admin(AdminOpcode.SET_FEATURES, cdw10=FeatureId.VOLATILE_WRITE_CACHE, cdw11=on))


def test_the_write_cache_is_volatile_and_can_be_switched_off(make: Make) -> None:
    """Base 5.27.1.4; Force Unit Access: NVM Command Set 3.2.6."""
    assert not durable(make)
    assert durable(make, cdw12=FUA)
    assert durable(make, 0)
    assert not durable(make, 0, 1)


@pytest.mark.parametrize("how", ["flush", "flush all", "cache off", "shutdown"])
def test_what_makes_earlier_writes_safe(make: Make, how: str) -> None:
    backend = PowerCut(MemoryBackend(DISK))
    driver = make(backend=backend)
    driver.enable()
    driver.create_queues(1)
    driver.check(driver.write(3, b"x" * 512))
    match how:
        case "flush":
            driver.check(driver.io(IoOpcode.FLUSH))
        case "flush all":
            driver.check(driver.io(IoOpcode.FLUSH, nsid=0xFFFFFFFF))
        case "cache off":
            switch_cache(driver, 0)
        case "shutdown":
            driver.write_register(0x14, 4 << 20 | 6 << 16 | 1 << 14 | 1)
            assert driver.read_register(0x1C) >> 2 & 3 == 2
    assert backend.unflushed == 0


def test_several_namespaces_are_separate(make: Make) -> None:
    driver = make(backends=[MemoryBackend(DISK), MemoryBackend(8192), MemoryBackend(DISK)])
    driver.enable()
    driver.create_queues(1)
    for nsid in (1, 2, 3):
        driver.check(driver.write(0, bytes([nsid]) * 512, nsid=nsid))
    for nsid in (1, 2, 3):
        assert driver.read(0, 1, nsid=nsid) == bytes([nsid]) * 512
    address = driver.memory.allocate(4096)
    assert driver.io(IoOpcode.READ, nsid=2, cdw10=16, prp1=address).status == Status.LBA_OUT_OF_RANGE
    assert driver.io(IoOpcode.READ, nsid=4, prp1=address).status == Status.INVALID_NAMESPACE


def test_bus_master_off_stops_the_controller_for_good(driver: NvmeDriver) -> None:
    """The queues can't be reached: fatal (Base 3.1.3.6), until a reset."""
    config = driver.region(RegionIndex.CONFIG)
    config.write(4, 2, 2)
    driver.submit(1, driver.entry(IoOpcode.FLUSH, nsid=1))
    assert driver.fatal
    config.write(4, 2, 6)
    driver.disable()
    assert not driver.fatal
    driver.enable()
    driver.create_queues(1)
    driver.read(0, 1)
