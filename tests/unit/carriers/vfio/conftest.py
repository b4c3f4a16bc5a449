from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.carriers.vfio import VfioFunction, open_function
from iolane.testing.fake_vfio import FakeFunction, FakeKernel
from tests.unit.carriers.vfio.hardware import ADDRESS, HOST_BAR, WINDOW, Card


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FakeKernel]:
    kernel = FakeKernel(tmp_path)
    yield kernel
    assert not kernel.files, "descriptors were left open"


@pytest.fixture
def fake(kernel: FakeKernel) -> FakeFunction:
    """A card that the firmware has given an address."""
    card = Card()
    card.config.write(0x10, 4, HOST_BAR)
    return kernel.add(FakeFunction(ADDRESS, card, 7, mappable={0: [WINDOW]}))


@pytest.fixture
def function(kernel: FakeKernel, fake: FakeFunction) -> Iterator[VfioFunction]:
    """Open, with memory decoding and bus master on."""
    with open_function(ADDRESS, host=kernel, kernel=kernel) as function:
        function.set_command()
        yield function
