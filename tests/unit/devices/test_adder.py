"""The example of the README, driven as its Linux driver drives it."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.adder import Adder, AdderRegisters, Control
from iolane.devices.registry import create
from iolane.model.interrupts import InterruptMode
from iolane.testing.drivers.function import FunctionDriver

EXAMPLE = Path(__file__).parents[3] / "examples" / "adder.py"


@pytest.mark.parametrize(("presentation", "mode"), [("auto", InterruptMode.MSIX), ("msi", InterruptMode.MSI)])
def test_adds_and_interrupts(presentation: str, mode: InterruptMode) -> None:
    with FunctionDriver(Adder(presentation=presentation), memory=0) as driver:
        assert driver.mode is mode
        for a, b in ((2, 3), (0xFFFF_FFFF, 2)):
            driver.write(AdderRegisters.A.offset, 4, a)
            driver.write(AdderRegisters.B.offset, 4, b)
            driver.write(AdderRegisters.CONTROL.offset, 4, Control.make(START=1))
            assert driver.interrupts() == 1
            assert driver.read(AdderRegisters.SUM.offset, 4) == (a + b) % 2**32
        assert driver.read(AdderRegisters.CONTROL.offset, 4) == 0
        driver.write(AdderRegisters.CONTROL.offset, 4, 0)
        assert driver.interrupts() == 0


def test_is_at_most_30_lines() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 30


def test_is_made_from_its_file() -> None:
    device = create(f"{EXAMPLE}:Adder,presentation=msi")
    assert device.name == "adder"
    device.close()


@pytest.mark.parametrize(
    ("name", "vendor_device"), [("edu", 0x11E8_1234), ("serial,stream=null", 0x0002_1B36)]
)
def test_small_devices_have_names(name: str, vendor_device: int) -> None:
    device = create(name)
    assert device.config.read(0, 4) == vendor_device
    device.close()
