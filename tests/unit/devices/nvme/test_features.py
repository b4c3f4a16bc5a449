"""Features: NVM Express Base 2.0c, 5.15 and 5.27."""

import pytest

from iolane.devices.nvme.spec import AdminOpcode, FeatureId, Select, Status
from iolane.devices.nvme.structures import CompletionEntry
from iolane.testing.nvme_driver import NvmeDriver

F = FeatureId


def get(driver: NvmeDriver, feature: int, select: int = 0, **fields: int) -> CompletionEntry:
    return driver.admin(AdminOpcode.GET_FEATURES, cdw10=select << 8 | feature, **fields)


def put(driver: NvmeDriver, feature: int, value: int = 0, **fields: int) -> CompletionEntry:
    return driver.admin(AdminOpcode.SET_FEATURES, cdw10=feature, cdw11=value, **fields)


@pytest.mark.parametrize(
    ("feature", "default", "value"),
    [
        (F.ARBITRATION, 5, 0x01020303),
        (F.POWER_MANAGEMENT, 0, 0x40),
        (F.TEMPERATURE_THRESHOLD, 343, 350),
        (F.VOLATILE_WRITE_CACHE, 1, 0),
        (F.INTERRUPT_COALESCING, 0, 0x0503),
        (F.WRITE_ATOMICITY, 0, 1),
        (F.ASYNC_EVENT_CONFIGURATION, 0, 0x11F),
        (F.COMMAND_SET_PROFILE, 0, 0),
    ],
)
def test_values_are_kept_and_defaults_and_resets_restore(
    driver: NvmeDriver, feature: FeatureId, default: int, value: int
) -> None:
    assert get(driver, feature).result == default
    driver.check(put(driver, feature, value))
    assert get(driver, feature).result == value
    for select in (Select.DEFAULT, Select.SAVED):
        assert get(driver, feature, select).result == default
    assert get(driver, feature, Select.CAPABILITIES).result == 1 << 2
    driver.disable()
    driver.enable()
    assert get(driver, feature).result == default


def test_number_of_queues(driver: NvmeDriver) -> None:
    """Base 5.27.1.5."""
    assert get(driver, F.NUMBER_OF_QUEUES).result == 7 << 16 | 7
    assert put(driver, F.NUMBER_OF_QUEUES, 3 << 16 | 3).status == Status.COMMAND_SEQUENCE_ERROR
    driver.disable()
    driver.enable()
    completion = put(driver, F.NUMBER_OF_QUEUES, 3 << 16 | 63)
    assert (completion.status, completion.result) == (0, 7 << 16 | 7)
    assert put(driver, F.NUMBER_OF_QUEUES, 0xFFFF).status == Status.INVALID_FIELD
    assert put(driver, F.NUMBER_OF_QUEUES, 0xFFFF0000).status == Status.INVALID_FIELD


def test_error_recovery_is_of_a_namespace(driver: NvmeDriver) -> None:
    """NVM Command Set 4.1.3.1."""
    driver.check(put(driver, F.ERROR_RECOVERY, 30, nsid=1))
    assert get(driver, F.ERROR_RECOVERY, nsid=1).result == 30
    assert get(driver, F.ERROR_RECOVERY, Select.CAPABILITIES).result == 1 << 2 | 1 << 1
    driver.check(put(driver, F.ERROR_RECOVERY, 40, nsid=0xFFFFFFFF))
    assert get(driver, F.ERROR_RECOVERY, nsid=1).result == 40
    assert put(driver, F.ERROR_RECOVERY, 30, nsid=2).status == Status.INVALID_NAMESPACE
    assert get(driver, F.ERROR_RECOVERY, nsid=0).status == Status.INVALID_NAMESPACE
    assert put(driver, F.ERROR_RECOVERY, 1 << 16, nsid=1).status == Status.INVALID_FIELD


def test_temperature_thresholds(driver: NvmeDriver) -> None:
    """Base 5.27.1.3: over and under, of the composite temperature only."""
    driver.check(put(driver, F.TEMPERATURE_THRESHOLD, 1 << 20 | 250))
    assert get(driver, F.TEMPERATURE_THRESHOLD, cdw11=1 << 20).result == 250
    assert get(driver, F.TEMPERATURE_THRESHOLD).result == 343
    driver.check(put(driver, F.TEMPERATURE_THRESHOLD, 0xF << 16 | 351))
    assert get(driver, F.TEMPERATURE_THRESHOLD).result == 351
    assert put(driver, F.TEMPERATURE_THRESHOLD, 3 << 16 | 300).status == Status.INVALID_FIELD
    assert get(driver, F.TEMPERATURE_THRESHOLD, cdw11=1 << 16).status == Status.INVALID_FIELD
    assert put(driver, F.TEMPERATURE_THRESHOLD, 2 << 20 | 300).status == Status.INVALID_FIELD


def test_interrupt_vectors(driver: NvmeDriver) -> None:
    """Base 5.27.1.7."""
    driver.check(put(driver, F.INTERRUPT_VECTOR, 1 << 16 | 2))
    assert get(driver, F.INTERRUPT_VECTOR, cdw11=2).result == 1 << 16 | 2
    assert get(driver, F.INTERRUPT_VECTOR, cdw11=1).result == 1
    driver.check(put(driver, F.INTERRUPT_VECTOR, 2))
    assert get(driver, F.INTERRUPT_VECTOR, cdw11=2).result == 2
    assert put(driver, F.INTERRUPT_VECTOR, 17).status == Status.INVALID_FIELD
    assert get(driver, F.INTERRUPT_VECTOR, cdw11=17).status == Status.INVALID_FIELD


def test_the_timestamp_goes_on(driver: NvmeDriver) -> None:
    """Base 5.27.1.11."""
    address = driver.memory.allocate(4096)

    def read() -> tuple[int, int]:
        driver.check(get(driver, F.TIMESTAMP, prp1=address))
        data = driver.memory.read(address, 8)
        return int.from_bytes(data[:6], "little"), data[6]

    assert read() == (0, 0)
    driver.memory.write(address, (1_700_000_000_000).to_bytes(6, "little") + bytes(2))
    driver.check(put(driver, F.TIMESTAMP, prp1=address))
    driver.device.clock.advance(2_500_000_000)
    assert read() == (1_700_000_002_500, 1 << 1)
    driver.disable()
    driver.enable()
    assert read() == (0, 0)


def test_the_host_identifier_is_set_once(driver: NvmeDriver) -> None:
    """Base 5.27.1.25."""
    address = driver.memory.allocate(4096)
    assert put(driver, F.HOST_IDENTIFIER, 1, prp1=address).status == Status.INVALID_FIELD
    driver.memory.write(address, bytes(range(16)))
    driver.check(put(driver, F.HOST_IDENTIFIER, 1, prp1=address))
    driver.check(put(driver, F.HOST_IDENTIFIER, 1, prp1=address))
    driver.memory.write(address, bytes(16))
    driver.check(get(driver, F.HOST_IDENTIFIER, prp1=address, cdw11=1))
    assert driver.memory.read(address, 16) == bytes(range(16))
    driver.memory.write(address, bytes(range(1, 17)))
    assert put(driver, F.HOST_IDENTIFIER, 1, prp1=address).status == Status.COMMAND_SEQUENCE_ERROR


@pytest.mark.parametrize(
    ("opcode", "fields", "status"),
    [
        (AdminOpcode.GET_FEATURES, {"cdw10": 0x03}, Status.INVALID_FIELD),
        (AdminOpcode.GET_FEATURES, {"cdw10": 4 << 8 | 1}, Status.INVALID_FIELD),
        (AdminOpcode.SET_FEATURES, {"cdw10": 0x03}, Status.INVALID_FIELD),
        (AdminOpcode.SET_FEATURES, {"cdw10": 1 << 31 | 1}, Status.FEATURE_NOT_SAVEABLE),
        (AdminOpcode.SET_FEATURES, {"cdw10": 1, "nsid": 1}, Status.FEATURE_NOT_NAMESPACE_SPECIFIC),
        (AdminOpcode.SET_FEATURES, {"cdw10": 1, "nsid": 9}, Status.INVALID_NAMESPACE),
        (AdminOpcode.SET_FEATURES, {"cdw10": F.POWER_MANAGEMENT, "cdw11": 1}, Status.INVALID_FIELD),
        (
            AdminOpcode.SET_FEATURES,
            {"cdw10": F.ASYNC_EVENT_CONFIGURATION, "cdw11": 1 << 9},
            Status.INVALID_FIELD,
        ),
        (
            AdminOpcode.SET_FEATURES,
            {"cdw10": F.COMMAND_SET_PROFILE, "cdw11": 1},
            Status.COMMAND_SET_COMBINATION_REJECTED,
        ),
        (AdminOpcode.SET_FEATURES, {"cdw10": F.TIMESTAMP, "prp1": 0x40}, Status.DATA_TRANSFER_ERROR),
    ],
)
def test_what_is_refused(driver: NvmeDriver, opcode: int, fields: dict[str, int], status: Status) -> None:
    assert driver.admin(opcode, **fields).status == status
