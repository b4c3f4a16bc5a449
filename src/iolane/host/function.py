"""A PCI function of the host, as sysfs and its config space show it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntFlag

from iolane.host.config_space import ConfigSpace
from iolane.host.sysfs import Host
from iolane.model.pci.pcie_id import PcieId
from iolane.uapi.pci import HeaderType

DEVICES = "/sys/bus/pci/devices"
_ROM = 6
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")


class Resource(IntFlag):
    """IORESOURCE_*: the flags in a device's `resource` file (include/linux/ioport.h)."""

    IO = 0x100
    MEM = 0x200
    PREFETCH = 0x2000
    MEM_64 = 0x0010_0000


@dataclass(frozen=True)
class HostBar:
    """One BAR, or the expansion ROM (index 6)."""

    index: int
    start: int
    """Physical address, 0 if the kernel does not say (only root sees it)."""
    size: int
    flags: Resource

    @property
    def kind(self) -> str:
        """As lspci names it: `io`, `mem32`, `mem64`, with ` prefetchable`."""
        if Resource.IO in self.flags:
            return "io"
        width = "mem64" if Resource.MEM_64 in self.flags else "mem32"
        return f"{width} prefetchable" if Resource.PREFETCH in self.flags else width


@dataclass(frozen=True)
class Sriov:
    """A physical function's virtual functions (PCI Express Base, 9.3.3)."""

    total: int
    enabled: int
    autoprobe: bool
    """Whether the kernel binds drivers to new virtual functions."""
    virtual_functions: tuple[PcieId, ...]


@dataclass(frozen=True)
class HostFunction:
    """What is known of a function now; the kernel may change it at any time."""

    address: PcieId
    path: str
    """Its folder in /sys/devices: the ports above it are the parts before the last."""
    vendor: int
    device: int
    subsystem_vendor: int
    subsystem_device: int
    class_code: int
    """24 bits: base class, sub-class, programming interface."""
    revision: int
    driver: str | None
    driver_override: str | None
    iommu_group: int | None
    bars: tuple[HostBar, ...]
    config: ConfigSpace
    reset_methods: tuple[str, ...]
    """As the kernel would try them; `unnamed` on kernels before 5.15, which don't name them."""
    sriov: Sriov | None
    physical_function: PcieId | None
    """Of a virtual function: whose it is."""
    numa_node: int | None
    power_state: str | None
    """D0, D1, D2, D3hot, D3cold, unknown, error."""
    dma_mask_bits: int | None
    """As wide as the present driver asked for."""
    boot_vga: bool
    removable: bool
    wakeup: bool
    """Whether it may wake the sleeping machine."""

    @property
    def base_class(self) -> int:
        """The class code's highest byte."""
        return self.class_code >> 16

    @property
    def is_bridge(self) -> bool:
        """Header type 1 or 2: a bridge or port, whose functions are others."""
        return self.config.header_type in (HeaderType.BRIDGE, HeaderType.CARDBUS)

    @property
    def msix_vectors(self) -> int | None:
        """Vectors of its MSI-X table; None where only root may see them."""
        return self.config.msix_vectors

    @property
    def msi_vectors(self) -> int | None:
        """Vectors that MSI can give it; None where only root may see them."""
        return self.config.msi_vectors

    @property
    def upstream(self) -> tuple[PcieId, ...]:
        """The bridges and ports above it, the nearest first."""
        found = [part for part in self.path.split("/")[:-1] if _is_address(part)]
        return tuple(PcieId.from_string(part) for part in reversed(found))

    @property
    def directory(self) -> str:
        """Its folder under /sys/bus/pci/devices."""
        return f"{DEVICES}/{self.address}"


def function_directory(address: PcieId) -> str:
    """A function's folder in sysfs."""
    return f"{DEVICES}/{address}"


def read_function(host: Host, address: PcieId) -> HostFunction | None:
    """The function at `address`, or None if there is none (any more)."""
    folder = function_directory(address)
    path = host.real(folder)
    if path is None or (vendor := host.read_int(f"{folder}/vendor")) is None:
        return None
    numa_node = host.read_int(f"{folder}/numa_node")
    group = host.link(f"{folder}/iommu_group")
    physical = host.link(f"{folder}/physfn")
    return HostFunction(
        address=address,
        path=path,
        vendor=vendor,
        device=host.read_int(f"{folder}/device") or 0,
        subsystem_vendor=host.read_int(f"{folder}/subsystem_vendor") or 0,
        subsystem_device=host.read_int(f"{folder}/subsystem_device") or 0,
        class_code=host.read_int(f"{folder}/class") or 0,
        revision=host.read_int(f"{folder}/revision") or 0,
        driver=host.link(f"{folder}/driver"),
        driver_override=_driver_override(host, folder),
        iommu_group=int(group) if group is not None and group.isdecimal() else None,
        bars=_bars(host.read(f"{folder}/resource") or ""),
        config=ConfigSpace(host.read_bytes(f"{folder}/config") or b""),
        reset_methods=_reset_methods(host, folder),
        sriov=_sriov(host, folder),
        physical_function=PcieId.from_string(physical) if physical and _is_address(physical) else None,
        numa_node=numa_node if numa_node is not None and numa_node >= 0 else None,
        power_state=host.read(f"{folder}/power_state"),
        dma_mask_bits=host.read_int(f"{folder}/dma_mask_bits"),
        boot_vga=host.read(f"{folder}/boot_vga") == "1",
        removable=host.read(f"{folder}/removable") == "removable",
        wakeup=host.read(f"{folder}/power/wakeup") == "enabled",
    )


def last_address(path: str) -> PcieId | None:
    """The function that something in /sys/devices belongs to: the last address in its path."""
    found = [part for part in path.split("/") if _is_address(part)]
    return PcieId.from_string(found[-1]) if found else None


def _is_address(text: str) -> bool:
    """Every address in sysfs has its segment, of four digits or more (VMD)."""
    return _ADDRESS.fullmatch(text) is not None


def _driver_override(host: Host, folder: str) -> str | None:
    text = host.read(f"{folder}/driver_override")
    return None if text in (None, "", "(null)") else text


def _bars(text: str) -> tuple[HostBar, ...]:
    """Lines of start, end and flags; the seventh is the expansion ROM."""
    bars = []
    for index, line in enumerate(text.splitlines()[: _ROM + 1]):
        try:
            start, end, flags = (int(word, 16) for word in line.split())
        except ValueError:
            continue
        if flags & (Resource.IO | Resource.MEM) and end >= start:
            known = Resource(flags & (Resource.IO | Resource.MEM | Resource.PREFETCH | Resource.MEM_64))
            bars.append(HostBar(index, start, end - start + 1, known))
    return tuple(bars)


def _reset_methods(host: Host, folder: str) -> tuple[str, ...]:
    methods = host.read(f"{folder}/reset_method")
    if methods is not None:
        return tuple(methods.split())
    return ("unnamed",) if host.exists(f"{folder}/reset") else ()


def _sriov(host: Host, folder: str) -> Sriov | None:
    total = host.read_int(f"{folder}/sriov_totalvfs")
    if total is None:
        return None
    names = [name for name in host.names(folder) if name.startswith("virtfn") and name[6:].isdecimal()]
    targets = [host.link(f"{folder}/{name}") for name in sorted(names, key=lambda name: int(name[6:]))]
    return Sriov(
        total=total,
        enabled=host.read_int(f"{folder}/sriov_numvfs") or 0,
        autoprobe=host.read(f"{folder}/sriov_drivers_autoprobe") != "0",
        virtual_functions=tuple(PcieId.from_string(name) for name in targets if name and _is_address(name)),
    )
