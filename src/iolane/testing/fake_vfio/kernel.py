"""The kernel: character devices, what is open, and where each call goes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol

from iolane.memory.mapping import Mapping
from iolane.model.pci import PcieId
from iolane.testing.fake_vfio.function import FakeFunction
from iolane.testing.fake_vfio.iommu import fault
from iolane.testing.fake_vfio.iommufd import FakeCharacterDevice, FakeIommufd
from iolane.testing.fake_vfio.type1 import FakeContainer, FakeDevice, FakeGroup


class Open(Protocol):
    """An open file."""

    def ioctl(self, request: int, argument: bytearray | int) -> int: ...
    def close(self) -> None: ...


class FakeKernel:
    """Stands in for `LinuxKernel`, and is the host whose sysfs is read.

    Args:
        root: an empty folder, for sysfs.
        iommufd: the kernel has /dev/iommu and character devices of functions.
        type1: the kernel has /dev/vfio/vfio and groups.

    Attributes:
        refused: path -> errno of an `open` that fails.
        unviable: groups of which a function has another driver.
        interrupt_remapping: without it the kernel gives no IOMMU (EPERM).
        calls: (kind of file, request) of every ioctl.
    """

    def __init__(self, root: Path, *, iommufd: bool = False, type1: bool = True) -> None:
        self.root = root
        self.has_iommufd = iommufd
        self.has_type1 = type1
        self.functions: dict[PcieId, FakeFunction] = {}
        self.refused: dict[str, int] = {}
        self.unviable: set[int] = set()
        self.interrupt_remapping = True
        self.unmap_all = True
        self.calls: list[tuple[str, int]] = []
        self.containers: list[FakeContainer] = []
        self.files: dict[int, Open] = {}

    def add(self, function: FakeFunction) -> FakeFunction:
        """Plug it in, bound to vfio-pci."""
        self.functions[function.address] = function
        name = str(function.address)
        device = self.root / "sys/bus/pci/devices" / name
        group = self.root / f"sys/kernel/iommu_groups/{function.group}"
        (group / "devices").mkdir(parents=True, exist_ok=True)
        device.mkdir(parents=True)
        (device / "iommu_group").symlink_to(group)
        (device / "driver").symlink_to(self.root / "sys/bus/pci/drivers/vfio-pci")
        (group / "devices" / name).symlink_to(device)
        if self.has_iommufd:
            (device / "vfio-dev" / f"vfio{len(self.functions) - 1}").mkdir(parents=True)
        if self.has_type1:
            node = self.root / f"dev/vfio/{function.group}"
            node.parent.mkdir(parents=True, exist_ok=True)
            node.touch()
        return function

    # What `Kernel` asks for.

    def open(self, path: str) -> int:
        if path in self.refused:
            raise fault(self.refused[path])
        made = self._make(path)
        if made is None:
            raise fault(errno.ENOENT)
        fd = os.eventfd(0, os.EFD_CLOEXEC)
        self.files[fd] = made
        return fd

    def _make(self, path: str) -> Open | None:
        if path == "/dev/vfio/vfio" and self.has_type1:
            self.containers.append(FakeContainer(self))
            return self.containers[-1]
        if path == "/dev/iommu" and self.has_iommufd:
            return FakeIommufd(self)
        name = Path(path).name
        if path == f"/dev/vfio/devices/{name}" and self.has_iommufd:
            number = int(name.removeprefix("vfio"))
            return FakeCharacterDevice(self, list(self.functions.values())[number])
        members = [item for item in self.functions.values() if str(item.group) == name]
        if path != f"/dev/vfio/{name}" or not members or not self.has_type1:
            return None
        if any(isinstance(item, FakeGroup) and item.number == int(name) for item in self.files.values()):
            raise fault(errno.EBUSY)
        return FakeGroup(self, int(name))

    def open_device(self, function: FakeFunction, container: FakeContainer) -> int:
        """The descriptor of a function that a group gives: the memory of its regions."""
        fd = os.dup(function.memory_fd)
        self.files[fd] = FakeDevice(self, function, container)
        return fd

    def function_at(self, fd: int) -> FakeFunction:
        """The function that an open descriptor belongs to. Raises OSError."""
        opened = self.files.get(fd)
        if isinstance(opened, FakeDevice):
            return opened.function
        if isinstance(opened, FakeCharacterDevice) and opened.iommufd is not None:
            return opened.function
        raise fault(errno.EINVAL)

    def close(self, fd: int) -> None:
        self.files.pop(fd).close()
        os.close(fd)

    def ioctl(self, fd: int, request: int, argument: bytearray | int = 0) -> int:
        opened = self.files.get(fd)
        if opened is None:
            raise fault(errno.EBADF)
        self.calls.append((type(opened).__name__, request))
        return opened.ioctl(request, argument)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return self.function_at(fd).pread(length, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        return self.function_at(fd).pwrite(data, offset)

    def map(self, fd: int, length: int, offset: int, *, writable: bool) -> Mapping:
        return Mapping(self.function_at(fd).memory_fd, length, offset, writable)
