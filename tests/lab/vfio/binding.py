"""In the lab: a function is given to vfio-pci by hand, and looked for in sysfs."""

from __future__ import annotations

import os
from pathlib import Path

from iolane.model.pci import PcieId

DEVICES = Path("/sys/bus/pci/devices")


def bind(address: PcieId, driver: str = "vfio-pci") -> None:
    device = DEVICES / str(address)
    if (device / "driver").exists():
        (device / "driver/unbind").write_text(str(address))
    (device / "driver_override").write_text(f"{driver}\n")
    Path("/sys/bus/pci/drivers_probe").write_text(str(address))
    bound = os.path.basename(os.readlink(device / "driver"))
    assert bound == driver, f"{address} is bound to {bound}"


def release(address: PcieId) -> None:
    """Back to whichever driver wants it."""
    device = DEVICES / str(address)
    if (device / "driver").exists():
        (device / "driver/unbind").write_text(str(address))
    (device / "driver_override").write_text("\n")
    Path("/sys/bus/pci/drivers_probe").write_text(str(address))


def virtual_functions(address: PcieId, count: int) -> list[PcieId]:
    """Make `count` of them, without a driver."""
    device = DEVICES / str(address)
    (device / "sriov_numvfs").write_text("0")
    (device / "sriov_drivers_autoprobe").write_text("0")
    (device / "sriov_numvfs").write_text(str(count))
    links = (os.path.basename(os.readlink(device / f"virtfn{number}")) for number in range(count))
    return [PcieId.from_string(link) for link in links]
