"""The entropy device against virtio 1.3, 5.4."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.devices.registry import create
from iolane.devices.virtio.rng import Rng, RngFunction
from iolane.devices.virtio.rng.device import LARGEST, PERIOD_NS
from iolane.errors import IolaneError
from iolane.model.workers import Workers
from iolane.testing.drivers.virtio_pci import VirtioPciDriver
from iolane.testing.model_state import check_golden, golden_files, missing_golden

Driver = VirtioPciDriver[RngFunction]
GOLDEN = Path(__file__).with_name("golden")


@pytest.fixture
def driver() -> Iterator[Driver]:
    with Driver(RngFunction()) as driver:
        yield driver


def fill(driver: Driver, *sizes: int) -> list[bytes]:
    for size in sizes:
        driver.rings[0].send(b"", size)
    driver.rings[0].kick()
    return [used.data for used in driver.rings[0].collect()]


def test_buffers_are_filled(driver: Driver) -> None:
    (first,) = fill(driver, 4096)
    (second,) = fill(driver, 4096)
    assert len(first) == len(second) == 4096
    assert first != second
    assert len(set(first)) > 200
    assert [len(data) for data in fill(driver, 1, 7, 300)] == [1, 7, 300]


def test_a_large_buffer_is_filled_in_part(driver: Driver) -> None:
    """5.4.6.2: one or more bytes, maybe less than the buffer."""
    (data,) = fill(driver, 2 * LARGEST)
    assert len(data) == LARGEST


def test_a_buffer_that_is_none(driver: Driver) -> None:
    """5.4.6.1: MUST NOT be readable; it comes back, and nothing was written."""
    driver.rings[0].send(b"not for writing")
    driver.rings[0].kick()
    (used,) = driver.rings[0].collect()
    assert used.written == 0
    assert driver.device.counters["empty_buffers"] == 1


def test_a_rate() -> None:
    with Driver(RngFunction(rate=1000)) as driver:
        assert [len(data) for data in fill(driver, 60, 60, 60)] == [60, 40]
        driver.device.clock.advance(PERIOD_NS - 1)
        assert fill(driver) == []
        driver.device.clock.advance(1)
        assert [len(data) for data in fill(driver)] == [60]
        for _ in range(3):
            driver.device.clock.advance(PERIOD_NS)
        assert sum(len(data) for data in fill(driver, *[100] * 5)) == 100
        driver.reset()
        driver.device.clock.advance(PERIOD_NS)


def test_a_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"0123456789")
    device = create(f"rng,source={source}")
    assert isinstance(device, RngFunction)
    with Driver(device) as driver, Workers(1) as workers:
        device.attach(workers)
        driver.rings[0].send(b"", 4)
        driver.rings[0].kick()
        device.pause()
        device.resume()
        assert [used.data for used in driver.rings[0].collect()] == [b"0123"]
        device.detach()
        assert fill(driver, 4, 4) == [b"4567", b"89"]
        (data,) = fill(driver, 32)
        assert len(data) == 32, "an empty source is stood in for"
        assert device.counters["source_failures"] == 1


@pytest.mark.parametrize(
    ("options", "message"), [("rate=-1", "bytes a second"), ("source=/none", "/none: no such")]
)
def test_wrong_options(options: str, message: str) -> None:
    with pytest.raises(IolaneError, match=message):
        create(f"rng,{options}")


def test_golden_states() -> None:
    assert missing_golden(GOLDEN, RngFunction) == []
    for path in golden_files(GOLDEN, RngFunction):
        device = check_golden(lambda: RngFunction(name="golden"), path)
        assert device.virtio.queues[0].running
        device.close()


def test_by_another_carrier() -> None:
    """Without PCI: queues are set and started by whoever carries it."""
    device = Rng()
    device.dma.map(0, 4096, buffer=bytearray(os.urandom(4096)))
    assert device.accept_features(device.offered)
    with device.lock:
        device.queues[0].used = 2048
        device.queues[0].start(used_index=0)
        assert device.queues[0].rejection is not None, "random memory is no ring"
    device.close()
