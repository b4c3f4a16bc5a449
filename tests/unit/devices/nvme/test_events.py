"""Asynchronous events: NVM Express Base 2.0c, 5.2; Abort, 5.1."""

import pytest

from iolane.devices.nvme.spec import AdminOpcode, FeatureId, LogId, Status
from iolane.testing.nvme_driver import DOORBELLS, NvmeDriver

ERROR, SMART, NOTICE = 0, 1, 2


def request(driver: NvmeDriver) -> int:
    return driver.submit(0, driver.entry(AdminOpcode.ASYNC_EVENT_REQUEST))[0]


def event(driver: NvmeDriver, cid: int) -> tuple[int, int, int] | None:
    """Type, information and log page of the event that completed the request."""
    driver.reap(0)
    completion = driver.rings[0].done.pop(cid, None)
    if completion is None:
        return None
    assert completion.status == 0
    return completion.result & 7, completion.result >> 8 & 0xFF, completion.result >> 16 & 0xFF


def configure(driver: NvmeDriver, value: int) -> None:
    driver.check(
        driver.admin(AdminOpcode.SET_FEATURES, cdw10=FeatureId.ASYNC_EVENT_CONFIGURATION, cdw11=value)
    )


@pytest.mark.parametrize(
    ("doorbell", "value", "information"),
    [
        (2 * 5, 1, 0),
        (2 * 5 + 1, 1, 0),
        (2 * 300, 0, 0),
        (1023, 7, 0),
        (2 * 1, 64, 1),
        (2 * 1, 0xFFFFFFFF, 1),
        (2 * 1, 0, 1),
        (2 * 1 + 1, 1, 1),
        (2 * 1 + 1, 64, 1),
    ],
)
def test_a_bad_doorbell_is_an_error_event(
    driver: NvmeDriver, doorbell: int, value: int, information: int
) -> None:
    """Base 5.2.1, Figure 146: Write to Invalid Doorbell Register, Invalid Doorbell Write Value."""
    cid = request(driver)
    driver.write_register(DOORBELLS + 4 * doorbell, value)
    assert event(driver, cid) == (ERROR, information, LogId.ERROR_INFORMATION)
    assert not driver.fatal
    driver.read(0, 1)


def test_a_tail_past_the_head_is_refused(driver: NvmeDriver) -> None:
    cid = request(driver)
    driver.device.arbiter.serve = lambda: None  # type: ignore[method-assign]  # nothing is fetched
    driver.write_register(DOORBELLS + 8, 10)
    driver.write_register(DOORBELLS + 8, 9)
    del driver.device.arbiter.serve
    assert driver.device.state.submission[1].tail == 10
    driver.device.arbiter.ring(0)
    assert event(driver, cid) == (ERROR, 1, LogId.ERROR_INFORMATION)


def test_events_wait_for_requests_and_types_are_masked_until_their_log_is_read(driver: NvmeDriver) -> None:
    bad = DOORBELLS + 4 * 300
    driver.write_register(bad, 0)
    first = request(driver)
    assert event(driver, first) == (ERROR, 0, 1)
    driver.write_register(bad, 0)
    second = request(driver)
    assert event(driver, second) is None
    driver.log_page(LogId.ERROR_INFORMATION, 64, retain=True)
    assert event(driver, second) is None
    driver.log_page(LogId.ERROR_INFORMATION, 64)
    assert event(driver, second) == (ERROR, 0, 1)


def test_more_requests_than_promised_are_refused(driver: NvmeDriver) -> None:
    """Base 5.2: Asynchronous Event Request Limit Exceeded."""
    limit = driver.identify(1)[259] + 1
    for _ in range(limit):
        request(driver)
    completion = driver.admin(AdminOpcode.ASYNC_EVENT_REQUEST)
    assert completion.status == Status.ASYNC_EVENT_LIMIT
    assert not completion.do_not_retry


def test_smart_events_are_those_asked_for(driver: NvmeDriver) -> None:
    health = driver.device.health
    cid = request(driver)
    health.set(temperature=400)
    assert event(driver, cid) is None
    configure(driver, 0b10)
    assert event(driver, cid) == (SMART, 1, LogId.SMART)
    cid = request(driver)
    driver.log_page(LogId.SMART, 512)
    assert event(driver, cid) is None, "the condition persists, it is not new"
    health.set(temperature=300)
    configure(driver, 0b111)
    health.set(spare=5)
    assert event(driver, cid) == (SMART, 2, LogId.SMART)
    assert driver.log_page(LogId.SMART, 512)[0] == 1
    cid = request(driver)
    health.set(reliable=False)
    assert event(driver, cid) == (SMART, 0, LogId.SMART)


def test_a_threshold_below_the_temperature_raises_an_event(driver: NvmeDriver) -> None:
    configure(driver, 0b10)
    cid = request(driver)
    driver.check(driver.admin(AdminOpcode.SET_FEATURES, cdw10=FeatureId.TEMPERATURE_THRESHOLD, cdw11=300))
    assert event(driver, cid) == (SMART, 1, LogId.SMART)


def test_a_changed_namespace_is_a_notice(driver: NvmeDriver) -> None:
    cid = request(driver)
    driver.device.set_write_protected(1, True)
    assert event(driver, cid) is None
    configure(driver, 1 << 8)
    driver.device.set_write_protected(1, False)
    assert event(driver, cid) == (NOTICE, 0, LogId.CHANGED_NAMESPACES)
    assert driver.log_page(LogId.CHANGED_NAMESPACES, 16)[:8] == bytes((1, 0, 0, 0, 0, 0, 0, 0))
    assert driver.log_page(LogId.CHANGED_NAMESPACES, 16) == bytes(16)


def test_a_request_can_be_aborted(driver: NvmeDriver) -> None:
    cid = request(driver)
    completion = driver.admin(AdminOpcode.ABORT, cdw10=cid << 16)
    assert (completion.status, completion.result) == (0, 0)
    driver.reap(0)
    assert driver.rings[0].done.pop(cid).status == Status.ABORT_REQUESTED
    assert driver.admin(AdminOpcode.ABORT, cdw10=cid << 16).result == 1
    assert driver.admin(AdminOpcode.ABORT, cdw10=5 << 16 | 77).result == 1


def test_a_reset_forgets_requests_and_events(driver: NvmeDriver) -> None:
    request(driver)
    driver.disable()
    driver.enable()
    assert not driver.device.state.events.requests
    driver.write_register(DOORBELLS + 4 * 300, 0)
    driver.disable()
    driver.enable()
    assert event(driver, request(driver)) is None
