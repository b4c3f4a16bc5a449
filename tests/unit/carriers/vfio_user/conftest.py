"""A served sample device and clients of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iolane.carriers.vfio_user import Rejection, VfioUserClient, VfioUserServer
from iolane.model.workers import Workers
from tests.unit.carriers.vfio_user.sample import RawClient, Sample


@pytest.fixture
def device() -> Iterator[Sample]:
    sample = Sample()
    yield sample
    sample.close()


@pytest.fixture
def server(device: Sample, tmp_path: Path) -> Iterator[VfioUserServer]:
    with Workers(2) as workers, VfioUserServer(device, tmp_path / "s", workers=workers) as server:
        yield server


@pytest.fixture
def client(server: VfioUserServer) -> Iterator[VfioUserClient]:
    """Connected and negotiated, bus mastering on."""
    with VfioUserClient(server.path) as client:
        client.negotiate()
        client.config_write(4, 2, 0x6)
        yield client
    assert server.wait_idle(30)


@pytest.fixture
def raw(server: VfioUserServer) -> Iterator[RawClient]:
    """Connected and negotiated."""
    with RawClient(server.path) as raw:
        raw.negotiate()
        yield raw
    assert server.wait_idle(30)


@pytest.fixture
def rejected(server: VfioUserServer) -> Callable[[Rejection], int]:
    """How often something was rejected so far."""
    return lambda rejection: server.statistics.rejections[rejection]
