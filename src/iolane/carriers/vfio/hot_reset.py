"""Resetting a bus, where a function can't be reset alone."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from struct import Struct
from typing import NamedTuple

from iolane.carriers.vfio.ioctl import Descriptor, VfioError, failure
from iolane.model.pci.pcie_id import PcieId
from iolane.uapi.vfio import Ioctl
from iolane.uapi.vfio_layouts import PCI_DEPENDENT_DEVICE, PCI_HOT_RESET, PCI_HOT_RESET_INFO

DEPENDENTS_LIMIT = 256 * 8


class Dependent(NamedTuple):
    """A function that a reset of the bus would reset."""

    group: int
    """Its IOMMU group; with an iommufd, its device id there."""
    address: PcieId


def dependents(device: Descriptor) -> list[Dependent]:
    """VFIO_DEVICE_GET_PCI_HOT_RESET_INFO. Raises `VfioError`: ENODEV where the bus can't be reset."""
    count = 0
    while True:
        argsz = PCI_HOT_RESET_INFO.size + count * PCI_DEPENDENT_DEVICE.size
        buffer = bytearray(PCI_HOT_RESET_INFO.pack(argsz, 0, 0).ljust(argsz, b"\0"))
        try:
            device.kernel.ioctl(device.fd, Ioctl.DEVICE_GET_PCI_HOT_RESET_INFO, buffer)
        except OSError as error:
            needed = int(PCI_HOT_RESET_INFO.unpack_from(buffer)[2])
            if error.errno != errno.ENOSPC or not count < needed <= DEPENDENTS_LIMIT:
                raise failure(f"{device.name}: what a reset of its bus would reset", error) from None
            count = needed
            continue
        break
    found = int(PCI_HOT_RESET_INFO.unpack_from(buffer)[2])
    listed = buffer[PCI_HOT_RESET_INFO.size :][: found * PCI_DEPENDENT_DEVICE.size]
    return [
        Dependent(group, PcieId.from_routing(bus << 8 | devfn, segment))
        for group, segment, bus, devfn in PCI_DEPENDENT_DEVICE.iter_unpack(listed)
    ]


def hot_reset(device: Descriptor, groups: Mapping[int, int]) -> None:
    """VFIO_DEVICE_PCI_HOT_RESET. Descriptors prove that every group on the bus is ours.

    Args:
        device: a function on the bus.
        groups: number -> descriptor of the groups that we hold; those on the bus are shown to the kernel.

    Raises:
        VfioError: the bus can't be reset, or functions on it are not ours.
    """
    on_bus = sorted({each.group for each in dependents(device)} & groups.keys())
    fds = [groups[number] for number in on_bus]
    argsz = PCI_HOT_RESET.size + 4 * len(fds)
    request = PCI_HOT_RESET.pack(argsz, 0, len(fds)) + Struct(f"={len(fds)}i").pack(*fds)
    try:
        device.kernel.ioctl(device.fd, Ioctl.DEVICE_PCI_HOT_RESET, bytearray(request))
    except OSError as error:
        raise _explain(device, error) from None


def _explain(device: Descriptor, error: OSError) -> VfioError:
    others = ", ".join(f"{each.address} (group {each.group})" for each in dependents(device))
    return failure(
        f"{device.name} can't be reset with its bus", error, f"everything on it must be ours: {others}"
    )
