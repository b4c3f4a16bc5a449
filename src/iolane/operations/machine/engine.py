"""The engine of a machine: which QEMU, how it runs the guest, and what it is told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iolane.backends.net.passt import VARIABLE as PASST_VARIABLE
from iolane.devices.specification import DeviceSpecification
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.command_line import Accelerator, MachineDevice
from iolane.engines.qemu.initramfs import InitramfsContent
from iolane.engines.qemu.kernel import GuestKernel, build_module, debian_kernel, own_kernel
from iolane.engines.qemu.machine import MachineConfig
from iolane.engines.qemu.passt import obtain_passt
from iolane.engines.qemu.probe import choose_accelerator
from iolane.engines.qemu.provision import Qemu, obtain_qemu
from iolane.engines.qemu.vmlinux import uncompressed
from iolane.operations.machine.description import MachineDescription, is_file, is_path
from iolane.operations.machine.devices import MachineDevices

STOCK_DRIVERS = {
    "nvme": ("nvme",),
    "block": ("virtio_pci", "virtio_blk"),
    "net": ("virtio_pci", "virtio_net"),
    "console": ("virtio_pci", "virtio_console"),
    "rng": ("virtio_pci", "virtio-rng"),
}
"""Modules that devices of these names need where the kernel does not hold them."""
PLUGGED_LATER = ("nvme", "block", "net")
"""Devices whose drivers every guest of ours has: no udev loads them when one is plugged in."""
DHCP_SETUP = """
mkdir -p /etc/udhcpc
cat >/etc/udhcpc/default.script <<'END'
#!/bin/sh
case $1 in
deconfig) ifconfig $interface 0.0.0.0 up ;;
bound | renew)
    ifconfig $interface $ip netmask ${subnet:-255.255.255.0} ${mtu:+mtu $mtu}
    [ -z "$router" ] || route add default gw ${router%% *} dev $interface
    for server in $dns; do echo nameserver $server; done >/etc/resolv.conf
    ;;
esac
END
chmod 755 /etc/udhcpc/default.script
"""
"""Has busybox's udhcpc do what it was told."""


@dataclass(frozen=True)
class Engine:
    """What runs the guest."""

    qemu: Qemu
    accelerator: Accelerator
    reason: str

    def __str__(self) -> str:
        return f"QEMU {self.qemu.version} with {self.accelerator.upper()} ({self.reason})"


def choose_engine(description: MachineDescription, cache: Cache) -> Engine:
    """The QEMU and how it runs the guest, with the reason in a few words."""
    qemu = obtain_qemu(cache)
    if description.accelerator is not None:
        return Engine(qemu, description.accelerator, "as asked for")
    accelerator, reason = choose_accelerator(qemu, cache)
    first = "".join(letter for letter in reason.partition(";")[0] if letter.isprintable())
    return Engine(qemu, accelerator, first)


def provide_passt(wanted: Sequence[DeviceSpecification], cache: Cache) -> None:
    """Where passt is wanted and not installed, it is unpacked into the cache."""
    if any(device.name == "net" and "passt" in device.options for device in wanted):
        os.environ.setdefault(PASST_VARIABLE, str(obtain_passt(cache)))


def machine_config(
    description: MachineDescription,
    name: str,
    engine: Engine,
    devices: MachineDevices,
    cache: Cache,
) -> MachineConfig:
    """What the engine is told."""
    kernel = None if description.boot is not None else _kernel(description, cache)
    console_log = description.console_log
    return MachineConfig(
        name=name,
        memory_mib=description.memory_mib,
        cpus=description.cpus,
        devices=[_bootable(device, description.boot) for device in devices.devices],
        kernel=kernel,
        initrd=None if description.initrd is None else Path(description.initrd),
        content=_content(description, kernel, devices.kinds, devices.passed.drivers, cache),
        append=description.append,
        iommu=description.iommu,
        ports=description.port_count,
        accelerator=engine.accelerator,
        qemu=engine.qemu,
        console_log=None if console_log is None else Path(console_log),
    )


def _bootable(device: MachineDevice, boot: str | None) -> MachineDevice:
    """The firmware boots from the device named `boot`."""
    return replace(device, bootindex=1) if device.id == boot else device


def _kernel(description: MachineDescription, cache: Cache) -> GuestKernel:
    if is_path(description.kernel):
        folder = description.kernel_modules
        return own_kernel(Path(description.kernel), None if folder is None else Path(folder))
    return uncompressed(debian_kernel(description.kernel, cache), cache)


def _content(
    description: MachineDescription,
    kernel: GuestKernel | None,
    kinds: set[str],
    drivers: Sequence[str],
    cache: Cache,
) -> InitramfsContent:
    """The modules that were asked for, the stock drivers of the devices that iolane names, and those that
    passed functions had here.
    """
    if kernel is None or description.initrd is not None:
        return InitramfsContent()
    names = [module for module in description.modules if not is_file(module)]
    if kernel.modules is not None:
        wanted = kinds.union(PLUGGED_LATER)
        names += [driver for kind, stock in STOCK_DRIVERS.items() if kind in wanted for driver in stock]
        names += drivers
    files = [Path(module) for module in description.modules if is_file(module)]
    built = [file if file.suffix == ".ko" else build_module(kernel, file, cache) for file in files]
    return InitramfsContent(modules=names, extra_modules=built, setup=DHCP_SETUP)
