from collections.abc import Callable, Iterator
from typing import Any

import pytest

from iolane.backends.memory import MemoryBackend
from iolane.devices.nvme import Nvme
from iolane.model.interrupts import InterruptIndex
from iolane.model.workers import Workers
from iolane.testing.nvme_driver import NvmeDriver

DISK = 4 << 20
Make = Callable[..., NvmeDriver]


@pytest.fixture
def make() -> Iterator[Make]:
    """Controllers with their drivers, closed at the end: `make(workers=.., index=.., **constructor)`."""
    made: list[NvmeDriver] = []

    def build(
        *,
        workers: Workers | None = None,
        index: InterruptIndex = InterruptIndex.MSIX,
        memory_size: int = 8 << 20,
        **options: Any,
    ) -> NvmeDriver:
        if not {"image", "backend", "backends", "namespaces"} & set(options):
            options["backend"] = MemoryBackend(DISK)
        device = Nvme(**options)
        if workers is not None:
            device.attach(workers)
        driver = NvmeDriver(device, index=index, memory_size=memory_size)
        made.append(driver)
        return driver

    yield build
    for driver in made:
        driver.close()


@pytest.fixture
def driver(make: Make) -> NvmeDriver:
    """An enabled controller with a 4 MiB disk and two I/O queues; its tasks run at once."""
    driver = make()
    driver.enable()
    driver.create_queues(2)
    return driver


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers(4) as workers:
        yield workers
