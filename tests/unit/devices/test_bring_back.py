"""Every device of iolane's own comes back, in another process, as the one that was unplugged."""

from __future__ import annotations

from pathlib import Path

import pytest

from iolane.devices.registry import create
from iolane.model.state import decode

ADDER = Path(__file__).parents[3] / "examples" / "adder.py"
DEVICES = [
    f"{ADDER}:Adder,presentation=msi",
    "edu",
    "serial,stream=null",
    "nvme,image=IMAGE,presentation=msi",
    "block,image=IMAGE,carrier=vfio-user,presentation=intx",
    "console,presentation=intx",
    "rng,presentation=intx",
]


@pytest.mark.parametrize("text", DEVICES)
def test_it_is_the_same_after_the_resets_of_a_machine(tmp_path: Path, text: str) -> None:
    """What is in BARs and in its own state; config space, the guest's to set up, is new."""
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    text = text.replace("IMAGE", str(image))
    device = create(text)
    with device.lock:
        device.config.write(4, 2, 0x6)  # COMMAND: memory space, bus master
        for registers in device.bar_registers.values():
            storage = registers.storage
            storage[:] = bytes(
                value ^ 0x01 if index % 64 == 9 else value for index, value in enumerate(storage)
            )
    document = device.save()
    device.close()
    again = create(text)
    again.bring_back(document)
    for _ in range(2):
        again.reset_by_machine()
    before, after = decode(document), decode(again.save())
    assert after.state == before.state
    bars = {name: data for name, data in before.regions.items() if name.startswith("bar")}
    assert {name: data for name, data in after.regions.items() if name.startswith("bar")} == bars
    assert not again.dma.enabled
    assert again.error_count == 0
    again.close()
