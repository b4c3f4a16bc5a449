"""Log pages: NVM Express Base 2.0c, 5.16."""

import struct
from collections.abc import Sequence

import pytest

from iolane.backends.memory import MemoryBackend
from iolane.devices.nvme.spec import AdminOpcode, FeatureId, IoOpcode, LogId, Status
from iolane.testing.nvme_driver import NvmeDriver
from tests.unit.devices.nvme.conftest import Make

MINUTE = 60_000_000_000


def u128(page: bytes, at: int) -> int:
    return int.from_bytes(page[at : at + 16], "little")


def test_what_is_supported_is_what_is_there(driver: NvmeDriver) -> None:
    """Base 5.16.1.1, 5.16.1.6, 5.16.1.18: the pages agree with what the controller does."""
    logs = struct.unpack("<256I", driver.log_page(LogId.SUPPORTED_LOG_PAGES, 1024))
    for log in range(256):
        completion = driver.admin(
            AdminOpcode.GET_LOG_PAGE, prp1=driver.memory.base, cdw10=log | 1 << 15, nsid=0xFFFFFFFF
        )
        assert completion.status == (0 if logs[log] & 1 else Status.INVALID_LOG_PAGE)
    features = struct.unpack("<256I", driver.log_page(LogId.FEATURES_AND_EFFECTS, 1024))
    address = driver.memory.allocate(4096)
    for feature in range(256):
        completion = driver.admin(AdminOpcode.GET_FEATURES, cdw10=feature, nsid=1, prp1=address)
        assert completion.status == (0 if features[feature] & 1 else Status.INVALID_FIELD)
    commands = struct.unpack("<1024I", driver.log_page(LogId.COMMANDS_AND_EFFECTS, 4096))
    for opcode in range(256):
        refused = driver.io(opcode, nsid=1, prp1=0x10).status == Status.INVALID_OPCODE
        assert refused != commands[256 + opcode] & 1
    assert {opcode for opcode in range(256) if commands[opcode] & 1} == set(AdminOpcode)


def test_smart_counts_what_was_done(driver: NvmeDriver) -> None:
    """Base 5.16.1.3."""
    for lba in range(4):
        driver.check(driver.write(lba * 1024, bytes(512 * 1024)))
    driver.read(0, 2)
    driver.read(0, 1)
    driver.io(IoOpcode.READ, nsid=9)
    driver.device.clock.advance(130 * MINUTE)
    page = driver.log_page(LogId.SMART, 512)
    assert page[0] == 0
    assert int.from_bytes(page[1:3], "little") == 308
    assert page[3:6] == bytes((100, 10, 0))
    units = -(-4 * 512 * 1024 // 512_000)
    assert [u128(page, at) for at in range(32, 192, 16)] == [1, units, 2, 4, 0, 1, 2, 0, 0, 1]


def test_busy_time_is_the_time_of_commands(make: Make) -> None:
    class Slow(MemoryBackend):
        def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
            driver.device.clock.advance(2 * MINUTE)
            super().readv(offset, buffers)

    driver = make(backend=Slow(8192))
    driver.enable()
    driver.create_queues(1)
    driver.device.clock.advance(5 * MINUTE)
    driver.read(0, 1)
    driver.read(0, 1)
    driver.device.clock.advance(5 * MINUTE)
    assert u128(driver.log_page(LogId.SMART, 512), 96) == 4
    assert driver.device.describe()["io_latency_mean_us"] == 2 * MINUTE / 1000


def test_time_above_the_warning_temperature(driver: NvmeDriver) -> None:
    device = driver.device
    device.health.set(temperature=345)
    device.clock.advance(3 * MINUTE)
    device.health.set(temperature=360)
    device.clock.advance(2 * MINUTE)
    page = driver.log_page(LogId.SMART, 512)
    assert struct.unpack_from("<2I", page, 192) == (3, 2)
    assert page[0] == 1 << 1


def test_the_error_log_is_newest_first_and_bounded(driver: NvmeDriver) -> None:
    """Base 5.16.1.2."""
    for lba in range(70):
        driver.io(IoOpcode.READ, prp1=driver.memory.base, cdw10=lba, cdw11=1)
    page = driver.log_page(LogId.ERROR_INFORMATION, 64 * 64)
    counts = [struct.unpack_from("<Q", page, 64 * place)[0] for place in range(64)]
    assert counts == list(range(70, 6, -1))
    _, sqid, _, status, location, lba, nsid = struct.unpack_from("<QHHHHQI", page)
    assert (sqid, status >> 1, location, lba, nsid) == (1, Status.LBA_OUT_OF_RANGE, 40, 1 << 32 | 69, 1)
    driver.disable()
    driver.enable()
    assert driver.log_page(LogId.ERROR_INFORMATION, 64)[:8] == (70).to_bytes(8, "little")


def test_firmware_slots(driver: NvmeDriver) -> None:
    page = driver.log_page(LogId.FIRMWARE_SLOT, 512)
    assert page[0] == 1
    assert page[8:16] == driver.identify(1)[64:72]


def test_parts_of_a_page(driver: NvmeDriver) -> None:
    """Offsets (Base 5.16, LPOL and LPOU) count in dwords; past the end is Invalid Field."""
    whole = driver.log_page(LogId.COMMANDS_AND_EFFECTS, 4096)
    assert driver.log_page(LogId.COMMANDS_AND_EFFECTS, 64, offset=1020) == whole[1020:1084]
    address = driver.memory.allocate(8192)
    driver.memory.write(address, b"\xee" * 8192)
    prp1, prp2 = driver.prps(address, 8192)
    driver.check(
        driver.admin(AdminOpcode.GET_LOG_PAGE, prp1=prp1, prp2=prp2, cdw10=2047 << 16 | 5, cdw12=4092)
    )
    assert driver.memory.read(address, 8192)[4:] == b"\xee" * 8188
    for fields in ({"cdw12": 2}, {"cdw12": 4100}, {"cdw13": 1}):
        completion = driver.admin(AdminOpcode.GET_LOG_PAGE, prp1=address, cdw10=5, **fields)
        assert completion.status == Status.INVALID_FIELD


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"cdw10": LogId.SMART, "nsid": 1}, Status.INVALID_FIELD),
        ({"cdw10": LogId.COMMANDS_AND_EFFECTS, "cdw14": 2 << 24}, Status.INVALID_FIELD),
        ({"cdw10": 0xFFFF << 16 | 5, "cdw11": 0xFFFF, "prp1": 0x10}, Status.DATA_TRANSFER_ERROR),
    ],
)
def test_what_is_refused(driver: NvmeDriver, fields: dict[str, int], status: Status) -> None:
    assert driver.admin(AdminOpcode.GET_LOG_PAGE, **fields).status == status


def test_unknown_admin_commands(driver: NvmeDriver) -> None:
    for opcode in set(range(256)) - set(AdminOpcode):
        assert driver.admin(opcode).status == Status.INVALID_OPCODE
    assert driver.admin(AdminOpcode.IDENTIFY, flags=1 << 6).status == Status.INVALID_FIELD
    driver.check(driver.admin(AdminOpcode.GET_FEATURES, cdw10=FeatureId.ARBITRATION))
