"""What a machine is to be, as data: what `iolane run` asks for, and what a destination is built from."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import msgspec

from iolane.devices.specification import IDENTIFIER
from iolane.engines.qemu.command_line import Accelerator
from iolane.engines.qemu.kernel import Flavour
from iolane.errors import IolaneError
from iolane.operations.passthrough import PassRequest, parse_pass
from iolane.operations.tracing import TraceRequest


class EngineName(StrEnum):
    """What runs a guest."""

    QEMU = "qemu"
    LIBVIRT = "libvirt"


SPARE_PORTS = 4
"""Root ports that are there for what is plugged in later."""


class DeviceDescription(msgspec.Struct, frozen=True):
    """A device with its place in the machine."""

    text: str
    """As the user writes it: `nvme,image=disk.raw,id=disk`."""
    port: str | None = None
    """The root port it sits behind: `port1` and so on; by default the first free one."""


class MachineDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A machine. Paths are text, relative ones to the folder of the process that makes the machine."""

    name: str | None = None
    """By default `vm0` or the next one that no running machine of the user has."""
    engine: EngineName = EngineName.QEMU
    connect: str | None = None
    """Where libvirt is, by default qemu:///system; for its engine alone."""
    devices: list[str | DeviceDescription] = []
    """NAME[,key=value...] for each."""
    passed: list[str | DeviceDescription] = []
    """Functions of the host: ADDRESS[,key=value...]"""
    kernel: str = Flavour.CLOUD.value
    """A Debian flavour or the path of an image."""
    kernel_modules: str | None = None
    """The folder lib/modules/RELEASE of an own kernel."""
    initrd: str | None = None
    append: str = ""
    """More kernel parameters."""
    modules: list[str] = []
    """Kernel modules for the guest: names, .ko files, or .c files and folders to build."""
    boot: str | None = None
    """The id of the device that the firmware boots from, instead of a kernel."""
    memory_mib: int = 512
    cpus: int = 1
    ports: int | None = None
    """Root ports; by default four more than there are devices."""
    iommu: bool = False
    accelerator: Accelerator | None = None
    console_log: str | None = None
    trace: TraceRequest | None = None
    stop_on_fault: bool = False
    """End the machine when the IOMMU refuses something of a passed function."""

    @property
    def placed(self) -> list[DeviceDescription]:
        """The devices, each as a description."""
        return [_placed(each) for each in self.devices]

    @property
    def placed_functions(self) -> list[DeviceDescription]:
        """The passed functions, each as a description."""
        return [_placed(each) for each in self.passed]

    @property
    def requests(self) -> list[PassRequest]:
        """The passed functions, taken apart."""
        return [parse_pass(each.text) for each in self.placed_functions]

    @property
    def port_count(self) -> int:
        """How many root ports there are."""
        return len(self.devices) + len(self.passed) + SPARE_PORTS if self.ports is None else self.ports

    @property
    def has_own_system(self) -> bool:
        """Whether the guest is not iolane's initrd with its agent."""
        return self.boot is not None or self.initrd is not None

    def check(self) -> None:
        """Refuse at once what can't work, before anything is fetched or started. Raises IolaneError."""
        if self.name is not None:
            check_machine_name(self.name)
        if self.connect is not None and self.engine is not EngineName.LIBVIRT:
            raise IolaneError("a connection to libvirt is for its engine", remedy="--engine libvirt")
        if self.boot is not None and (self.initrd or self.append or self.modules):
            raise IolaneError("the system on a disk brings its own kernel, initrd, parameters and modules")
        if self.initrd is not None and not Path(self.initrd).is_file():
            raise IolaneError(f"{self.initrd}: no such file")
        if is_path(self.kernel) and not Path(self.kernel).is_file():
            raise IolaneError(f"{self.kernel}: no such kernel", remedy="a path, or one of cloud, generic")
        for module in self.modules:
            if is_file(module) and not Path(module).exists():
                raise IolaneError(f"{module}: no such file")


def check_machine_name(name: str) -> None:
    """Refuse what is no name for a machine. Raises IolaneError."""
    if not IDENTIFIER.fullmatch(name):
        raise IolaneError(
            f"'{name}' is no name for a machine", remedy="a letter, then letters, digits, '_', '-' or '.'"
        )


def is_file(module: str) -> bool:
    """A built module or the source of one, not the name of one of the kernel's."""
    return module.endswith((".ko", ".c")) or "/" in module


def is_path(kernel: str) -> bool:
    """An image of the user's own, not one of Debian's kernels."""
    return kernel not in tuple(Flavour)


def _placed(device: str | DeviceDescription) -> DeviceDescription:
    return DeviceDescription(device) if isinstance(device, str) else device
