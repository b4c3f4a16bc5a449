"""The driver vfio-pci: whether the host has it, and which drivers VFIO puts up with in a group."""

from __future__ import annotations

import re
import subprocess

from iolane.host.sysfs import Host, HostError

VFIO_PCI = "vfio-pci"
DRIVERS = "/sys/bus/pci/drivers"
_PATIENT_DRIVERS = {"vfio-pci", "pci-stub", "pcieport"}
"""Drivers that leave a function's DMA alone (`driver_managed_dma` in Linux)."""
_VARIANT = re.compile(r".*[-_]vfio[-_]pci")
"""vfio-pci's variants for one device: mlx5-vfio-pci, hisi-acc-vfio-pci, qat_vfio_pci ..."""
_MODULES = {"vfio-pci": "vfio-pci", "type1": "vfio_iommu_type1"}
_MODPROBE_SECONDS = 60
DENIED = frozenset({0x0435, 0x0443, 0x19E2, 0x19E3, 0x37C8, 0x37C9, 0x0B25, 0x0CFE})
"""Intel's devices (vendor 8086) that vfio-pci refuses, since a guest could hang the host through them."""
DENYLIST_OFF = "/sys/module/vfio_pci/parameters/disable_denylist"


def leaves_dma_alone(driver: str | None) -> bool:
    """Whether a group member with this driver (None: without any) does not stand in the way of VFIO."""
    return driver is None or driver in _PATIENT_DRIVERS or _VARIANT.fullmatch(driver) is not None


def is_loaded(host: Host) -> bool:
    """Whether vfio-pci is there to bind to."""
    return host.exists(f"{DRIVERS}/{VFIO_PCI}")


def is_available(host: Host) -> bool:
    """Whether vfio-pci is loaded, built in, or a module of this kernel that could be loaded."""
    if is_loaded(host):
        return True
    release = host.read("/proc/sys/kernel/osrelease") or ""
    listed = [
        host.read(f"/lib/modules/{release}/{name}") or "" for name in ("modules.dep", "modules.builtin")
    ]
    return any(re.search(r"/vfio[-_]pci\.ko", text) for text in listed)


def load(host: Host) -> None:
    """Load vfio-pci and the type 1 IOMMU back end, where they aren't loaded.

    Raises:
        HostError: they can't be.
    """
    if is_loaded(host):
        return
    if not host.is_live:
        raise HostError("vfio-pci is not loaded, and this host is a recorded one")
    for module in _MODULES.values():
        try:
            done = subprocess.run(
                ["modprobe", module], capture_output=True, text=True, timeout=_MODPROBE_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise HostError(f"modprobe {module}: {error}", remedy="load the module by hand") from error
        if done.returncode and module == VFIO_PCI:
            raise HostError(
                f"modprobe {module}: {done.stderr.strip() or 'failed'}",
                remedy="install the kernel's modules, or a kernel with CONFIG_VFIO_PCI",
            )
    if not is_loaded(host):
        raise HostError("vfio-pci is loaded, but its driver is not there", remedy="see dmesg")
