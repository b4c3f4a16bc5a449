"""A served sample device and front ends for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iolane.carriers.vhost_user import FrontEnd, Rejection, SharedMemory, VhostUserServer
from iolane.carriers.vhost_user.choice import PLANES
from iolane.model.workers import Workers
from iolane.testing.drivers.virtio import DriverMemory
from tests.unit.carriers.vhost_user.sample import ECHO, MEMORY, WANTED, Driver, Network, RawFront, Sample


@pytest.fixture
def device() -> Iterator[Sample]:
    sample = Sample()
    yield sample
    sample.gate.set()
    sample.close()


@pytest.fixture
def network() -> Iterator[Network]:
    sample = Network()
    yield sample
    sample.close()


@pytest.fixture(params=sorted(PLANES))
def plane(request: pytest.FixtureRequest) -> str:
    """The name of a data plane."""
    name: str = request.param
    return name


@pytest.fixture
def server(device: Sample, tmp_path: Path, plane: str) -> Iterator[VhostUserServer]:
    with Workers(2) as workers:
        with VhostUserServer(device, tmp_path / "s", workers=workers, plane=PLANES[plane]) as server:
            yield server
            device.gate.set()


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    with SharedMemory(MEMORY) as memory:
        yield memory


@pytest.fixture
def front(server: VhostUserServer, memory: SharedMemory, device: Sample) -> Iterator[FrontEnd]:
    """Connected and negotiated, memory shared, no ring started."""
    with FrontEnd(server.path, [memory], rings=2, wanted=WANTED) as front:
        yield front
        device.gate.set()
    assert server.wait_idle(30)


@pytest.fixture
def heap(memory: SharedMemory) -> DriverMemory:
    return DriverMemory(memory.view, memory.guest_address)


@pytest.fixture
def add_driver(front: FrontEnd, heap: DriverMemory) -> Callable[..., Driver]:
    """A started ring's driver."""

    def add(index: int = ECHO, base: int = 0, *, start: bool = True, size: int = 64) -> Driver:
        driver = Driver(heap, front.kicker(index), front.rings[index].wait_call, size=size)
        if start:
            front.start(index, driver.ring, base)
        return driver

    return add


@pytest.fixture
def raw(server: VhostUserServer) -> Iterator[RawFront]:
    """Connected and negotiated."""
    with RawFront(server.path) as raw:
        raw.negotiate()
        yield raw
    assert server.wait_idle(30)


@pytest.fixture
def rejected(server: VhostUserServer) -> Callable[[Rejection], int]:
    """How often something was rejected so far."""
    return lambda rejection: server.statistics.rejections[rejection]
