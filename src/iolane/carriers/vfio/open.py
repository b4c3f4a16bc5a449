"""Opening a function: by its group and a container, or by its character device and an iommufd."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum

from iolane.carriers.vfio.address_space import DmaAddressSpace
from iolane.carriers.vfio.container import Container
from iolane.carriers.vfio.function import VfioFunction
from iolane.carriers.vfio.group import Group
from iolane.carriers.vfio.ioctl import LINUX, Kernel, VfioError
from iolane.carriers.vfio.iommufd import IoAddressSpace, open_character_device
from iolane.carriers.vfio.place import LocalRoot, SystemRoot, character_device, group_of, members_of
from iolane.model.pci.pcie_id import PcieId


class Backend(StrEnum):
    """Which of the kernel's interfaces."""

    AUTO = "auto"
    """type 1; an iommufd where the kernel has no groups for VFIO."""
    TYPE1 = "type1"
    IOMMUFD = "iommufd"


def open_function(
    address: PcieId,
    *,
    host: SystemRoot | None = None,
    backend: Backend | str = Backend.AUTO,
    space: DmaAddressSpace | None = None,
    kernel: Kernel = LINUX,
) -> VfioFunction:
    """Hold a function that is bound to vfio-pci.

    Args:
        address: of the function.
        host: whose sysfs says where it is; by default this machine.
        backend: the kernel's interface.
        space: put it into an address space that another function has; by default it gets its own, which is
            closed with it.
        kernel: stands in for the kernel in tests.

    Raises:
        VfioError: there is no such function, it is not bound to vfio-pci, its group is not viable or in use,
            or the IOMMU can't be used; the remedy says what to do.
    """
    where = LocalRoot() if host is None else host
    if _choose(Backend(backend), address, where, space) is Backend.IOMMUFD:
        return _by_character_device(address, where, space, kernel)
    return _by_group(address, where, space, kernel)


def _choose(backend: Backend, address: PcieId, host: SystemRoot, space: DmaAddressSpace | None) -> Backend:
    if isinstance(space, Container | IoAddressSpace):
        own = Backend.TYPE1 if isinstance(space, Container) else Backend.IOMMUFD
        if backend not in (Backend.AUTO, own):
            raise VfioError(f"{address}: its address space is of {own}, not of {backend}")
        return own
    if backend is not Backend.AUTO:
        return backend
    group = host.root / f"dev/vfio/{group_of(address, host)}"
    return Backend.TYPE1 if group.exists() or character_device(address, host) is None else Backend.IOMMUFD


def _by_group(
    address: PcieId, host: SystemRoot, space: DmaAddressSpace | None, kernel: Kernel
) -> VfioFunction:
    number = group_of(address, host)
    with ExitStack() as undo:
        if isinstance(space, Container):
            container = space
        else:
            container = undo.enter_context(Container(kernel=kernel))
        group = container.group(number)
        if group is None:
            group = Group(number, kernel=kernel, members=lambda: members_of(number, host))
            undo.callback(group.close)
            container.add(group)
        device = group.device(address)
        undo.callback(device.close)
        function = VfioFunction(
            address, device, container, owns_space=space is None, groups=container.group_fds
        )
        undo.pop_all()
    return function


def _by_character_device(
    address: PcieId, host: SystemRoot, space: DmaAddressSpace | None, kernel: Kernel
) -> VfioFunction:
    path = character_device(address, host)
    if path is None:
        raise VfioError(
            f"{address} has no VFIO character device",
            remedy="bind it to vfio-pci; the kernel needs CONFIG_VFIO_DEVICE_CDEV (Linux 6.6), or use type1",
        )
    with ExitStack() as undo:
        device = open_character_device(path, str(address), kernel=kernel)
        undo.callback(device.close)
        if isinstance(space, IoAddressSpace):
            addresses = space
        else:
            addresses = undo.enter_context(IoAddressSpace(kernel=kernel))
        addresses.attach(device)
        function = VfioFunction(address, device, addresses, owns_space=space is None)
        undo.pop_all()
    return function
