"""Who has a function open through VFIO now."""

from __future__ import annotations

import contextlib
import os

from iolane.host.function import DEVICES
from iolane.host.sysfs import Host
from iolane.model.pci.pcie_id import PcieId


def vfio_users(host: Host, address: PcieId) -> list[str]:
    """Processes that hold its group or its VFIO device open, as `process 812 (qemu-system-x86)`.

    Unbinding would wait for them, perhaps for ever. Only root sees everybody's.
    """
    folder = f"{DEVICES}/{address}"
    group = host.link(f"{folder}/iommu_group")
    names = [str(group), *(f"devices/{name}" for name in host.names(f"{folder}/vfio-dev"))]
    nodes = {f"/dev/vfio/{name}" for name in names}
    found = []
    for process in host.names("/proc"):
        if process.isdecimal() and nodes & _open_files(host, process):
            found.append(f"process {process} ({host.read(f'/proc/{process}/comm') or '?'})")
    return found


def _open_files(host: Host, process: str) -> set[str]:
    opened = set()
    for descriptor in host.names(f"/proc/{process}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            opened.add(os.readlink(host.path(f"/proc/{process}/fd/{descriptor}")))
    return opened
