"""One lab with VT-d for all the tests below: it boots once, and each test leaves it as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from iolane.lab.hardware import DEFAULT_DEVICES, Kind
from iolane.lab.machine import Lab, LabConfig

HERE = Path(__file__).parent
SECONDS = 900
"""For a test: the first one boots the lab, on a machine that may be busy."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.lab)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(SECONDS))


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The lab with VT-d and the default devices (igb0, nvme0, e1000e0, edu0), shared by all tests that boot
    none of their own. Its edu reaches all of memory: it must be able to forge interrupts. The chipset's
    functions have drivers, and a disk can be mounted."""
    devices = [
        replace(each, dma_mask=(1 << 64) - 1) if each.kind is Kind.EDU else each for each in DEFAULT_DEVICES
    ]
    config = LabConfig(devices=devices, modules=("ahci", "i2c-i801", "ext4", "crc32c_generic"))
    with Lab(config, report=tell) as booted:
        yield booted
