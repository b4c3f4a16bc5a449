"""Where sysfs says that a function is: its IOMMU group, and its VFIO character device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from iolane.carriers.vfio.ioctl import VfioError
from iolane.model.pci.pcie_id import PcieId

DEVICES = Path("sys/bus/pci/devices")


class SystemRoot(Protocol):
    """The host whose sysfs is read: `iolane.host.sysfs.Host` is one."""

    @property
    def root(self) -> Path: ...


@dataclass(frozen=True, slots=True)
class LocalRoot:
    """The machine that this process runs on."""

    root: Path = Path("/")


def group_of(address: PcieId, host: SystemRoot) -> int:
    """The number of the function's IOMMU group. Raises `VfioError` where it has none."""
    device = _device(address, host)
    link = device / "iommu_group"
    if not link.is_symlink():
        raise VfioError(
            f"{address} is in no IOMMU group: the kernel runs without an IOMMU for it",
            remedy="enable VT-d or AMD-Vi in the firmware, and intel_iommu=on on the kernel's command line",
        )
    return int(os.path.basename(os.readlink(link)))


def members_of(number: int, host: SystemRoot) -> list[str]:
    """Each function of a group with its driver: `0000:00:1f.2 (ahci)`."""
    listed = []
    for link in sorted((host.root / f"sys/kernel/iommu_groups/{number}/devices").glob("*")):
        driver = host.root / DEVICES / link.name / "driver"
        name = os.path.basename(os.readlink(driver)) if driver.is_symlink() else "no driver"
        listed.append(f"{link.name} ({name})")
    return listed


def character_device(address: PcieId, host: SystemRoot) -> str | None:
    """/dev/vfio/devices/vfioN of the function (Linux 6.6 with CONFIG_VFIO_DEVICE_CDEV), or None."""
    found = sorted((_device(address, host) / "vfio-dev").glob("vfio*"))
    return f"/dev/vfio/devices/{found[0].name}" if found else None


def _device(address: PcieId, host: SystemRoot) -> Path:
    device = host.root / DEVICES / str(address)
    if not device.exists():
        raise VfioError(f"there is no PCI function {address} on this host", remedy="iolane host lists them")
    return device
