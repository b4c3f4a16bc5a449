"""Running a guest with devices: its command's output and exit code, or its console."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import msgspec

from iolane.backends.net.passt import VARIABLE as PASST_VARIABLE
from iolane.carriers.control import DeviceReport
from iolane.devices.specification import parse
from iolane.engines.qemu.agent import Type
from iolane.engines.qemu.cache import Cache, Report
from iolane.engines.qemu.command_line import Accelerator, MachineDevice, VfioUserDevice
from iolane.engines.qemu.initramfs import InitramfsContent
from iolane.engines.qemu.kernel import Flavour, GuestKernel, build_module, debian_kernel, own_kernel
from iolane.engines.qemu.machine import MachineConfig, QemuMachine
from iolane.engines.qemu.passt import obtain_passt
from iolane.engines.qemu.probe import choose_accelerator
from iolane.engines.qemu.provision import Qemu, obtain_qemu
from iolane.engines.qemu.vhost_user import VhostUserDevice
from iolane.engines.qemu.vmlinux import uncompressed
from iolane.errors import IolaneError
from iolane.operations.passthrough import PassedFunctions, PassRequest, machine_name
from iolane.operations.serving import DeviceServers, Endpoint, images_in_use
from iolane.operations.terminal import ESCAPE_NAME, interact, require_terminal
from iolane.operations.tracing import TraceRequest
from iolane.operations.watching import iommu_watched

UNLIMITED = 30 * 86400.0
"""Seconds: the longest a command in the guest may take when no limit is given."""
TIMED_OUT = 124
"""Exit code of a command that ran out of time, as timeout(1) has it."""
SHUTDOWN_LIMIT = 20.0
"""Seconds for a guest to power itself off; then it is ended."""
STOCK_DRIVERS = {
    "nvme": ("nvme",),
    "block": ("virtio_pci", "virtio_blk"),
    "net": ("virtio_pci", "virtio_net"),
    "console": ("virtio_pci", "virtio_console"),
    "rng": ("virtio_pci", "virtio-rng"),
}
"""Modules that devices of these names need where the kernel does not hold them."""
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
class RunRequest:
    """What the user wants to run."""

    devices: Sequence[str] = ()
    passed: Sequence[PassRequest] = ()
    """Functions of this host."""
    command: Sequence[str] = ()
    kernel: str = Flavour.CLOUD
    """A Debian flavour or the path of an image."""
    initrd: Path | None = None
    append: str = ""
    memory_mib: int = 512
    cpus: int = 1
    boot: str | None = None
    """The id of the device that the firmware boots from, instead of a kernel."""
    modules: Sequence[str] = ()
    """Kernel modules for the guest: names, .ko files, or .c files and folders to build."""
    kernel_modules: Path | None = None
    """The folder lib/modules/RELEASE of an own kernel."""
    iommu: bool = False
    accelerator: Accelerator | None = None
    timeout: float = UNLIMITED
    console_log: Path | None = None
    trace: TraceRequest | None = None
    stop_on_fault: bool = False
    """End the machine when the IOMMU refuses something of a passed function."""


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a command in the guest went, and what the devices counted meanwhile."""

    command: str
    exit_code: int
    output: str
    seconds: float
    timed_out: bool
    boot_seconds: float
    engine: str
    devices: list[DeviceReport]


@dataclass(frozen=True)
class Engine:
    """What runs the guest."""

    qemu: Qemu
    accelerator: Accelerator
    reason: str

    def __str__(self) -> str:
        return f"QEMU {self.qemu.version} with {self.accelerator.upper()} ({self.reason})"


class RunningGuest(NamedTuple):
    """A started machine and its devices."""

    machine: QemuMachine
    servers: DeviceServers
    engine: Engine


def choose_engine(request: RunRequest, cache: Cache) -> Engine:
    """The QEMU and how it runs the guest, with the reason in a few words."""
    qemu = obtain_qemu(cache)
    if request.accelerator is not None:
        return Engine(qemu, request.accelerator, "as asked for")
    accelerator, reason = choose_accelerator(qemu, cache)
    first = "".join(letter for letter in reason.partition(";")[0] if letter.isprintable())
    return Engine(qemu, accelerator, first)


def command_text(words: Sequence[str]) -> str:
    """One word is a line for the guest's shell; several are a command and its arguments, taken literally."""
    return words[0] if len(words) == 1 else shlex.join(words)


def run_command(request: RunRequest, report: Report, *, stream: bool) -> RunResult:
    """Boot, run the command, end the machine. With `stream` its output goes straight to ours."""
    text = command_text(request.command)
    with machine_with_devices(request, report) as (machine, servers, engine):
        result = machine.run(text, timeout=request.timeout, on_output=_pass_on if stream else None)
        outcome = RunResult(
            command=text,
            exit_code=TIMED_OUT if result.timed_out else result.exit_code,
            output=result.output,
            seconds=result.seconds,
            timed_out=result.timed_out,
            boot_seconds=machine.boot_seconds,
            engine=str(engine),
            devices=servers.reports(),
        )
        shut_down(machine)
        return outcome


def shut_down(machine: QemuMachine) -> None:
    """Let the guest end as a machine should: what was written is on the disks, drivers have let go."""
    with contextlib.suppress(IolaneError):
        machine.powerdown(SHUTDOWN_LIMIT)


def run_console(request: RunRequest, report: Report) -> list[DeviceReport]:
    """Boot with the terminal as the console, until the escape key or the machine's end."""
    with machine_with_devices(request, report, interactive=True) as (machine, servers, _):
        report(f"the guest's console; {ESCAPE_NAME} ends the machine")
        escaped = interact(machine.console)
        print("\r")
        report("ended by the escape key" if escaped else "the machine ended by itself")
        return servers.reports()


@contextlib.contextmanager
def machine_with_devices(
    request: RunRequest, report: Report, *, interactive: bool = False
) -> Iterator[RunningGuest]:
    """A started machine with its devices; everything is gone when it is left."""
    check(request)
    cache = Cache(report=report)
    _provide_passt(request, cache)
    with (
        PassedFunctions(request.passed, request.trace) as passed,
        DeviceServers(
            request.devices, trace=request.trace, beside=passed.mediated, holders=passed.holders
        ) as servers,
    ):
        devices = [*(machine_device(each) for each in servers.endpoints), *passed.devices]
        names = [device.id for device in devices]
        if request.boot is not None and request.boot not in names:
            raise IolaneError(
                f"there is no device '{request.boot}' to boot from",
                remedy=f"there are: {', '.join(names) or 'none'}",
            )
        if in_use := images_in_use(servers):
            raise in_use[0]
        if interactive:
            require_terminal()
        engine = choose_engine(request, cache)
        machine = QemuMachine(_config(request, devices, passed.drivers, cache, engine, interactive), cache)
        machine.on_dead_server = lambda dead: report(str(dead))
        report(f"booting with {', '.join(names) or 'no device'} on {engine}")
        with _watched(machine, request, report), machine:
            if machine.config.has_agent:
                report(f"up after {machine.boot_seconds:.1f} s")
            yield RunningGuest(machine, servers, engine)


def _watched(
    machine: QemuMachine, request: RunRequest, report: Report
) -> contextlib.AbstractContextManager[object]:
    """The IOMMU is watched where functions are passed."""
    if not request.passed:
        return contextlib.nullcontext()
    functions = {each.address for each in request.passed}
    return iommu_watched(machine, machine_name(), functions, report, stop_on_fault=request.stop_on_fault)


def _provide_passt(request: RunRequest, cache: Cache) -> None:
    """Where passt is wanted and not installed, it is unpacked into the cache."""
    wanted = [parse(device) for device in request.devices]
    if any(device.name == "net" and "passt" in device.options for device in wanted):
        os.environ.setdefault(PASST_VARIABLE, str(obtain_passt(cache)))


def check(request: RunRequest) -> None:
    """Refuse at once what can't work, before anything is fetched or started."""
    own_system = request.boot is not None or request.initrd is not None
    if request.command and own_system:
        raise IolaneError(
            "a command in the guest needs iolane's own initrd, which holds the agent that runs it",
            remedy="leave out the command and use the console, or leave out --boot and --initrd",
        )
    if request.boot is not None and (request.initrd or request.append or request.modules):
        raise IolaneError("the system on a disk brings its own kernel, initrd, parameters and modules")
    if request.initrd is not None and not request.initrd.is_file():
        raise IolaneError(f"{request.initrd}: no such file")
    if _is_path(request.kernel) and not Path(request.kernel).is_file():
        raise IolaneError(f"{request.kernel}: no such kernel", remedy="a path, or one of cloud, generic")
    for module in request.modules:
        if _is_file(module) and not Path(module).exists():
            raise IolaneError(f"{module}: no such file")


def _is_file(module: str) -> bool:
    """A built module or the source of one, not the name of one of the kernel's."""
    return module.endswith((".ko", ".c")) or "/" in module


def _is_path(kernel: str) -> bool:
    return kernel not in tuple(Flavour)


def _config(
    request: RunRequest,
    devices: list[MachineDevice],
    drivers: list[str],
    cache: Cache,
    engine: Engine,
    interactive: bool,
) -> MachineConfig:
    kernel = None if request.boot is not None else _kernel(request, cache)
    return MachineConfig(
        memory_mib=request.memory_mib,
        cpus=request.cpus,
        devices=[_bootable(device, request.boot) for device in devices],
        kernel=kernel,
        initrd=request.initrd,
        content=_content(request, kernel, drivers, cache),
        append=request.append,
        shell=interactive,
        iommu=request.iommu,
        ports=max(4, len(devices)),
        accelerator=engine.accelerator,
        qemu=engine.qemu,
        console_log=request.console_log,
    )


def machine_device(endpoint: Endpoint) -> MachineDevice:
    """What the machine connects to an endpoint with."""
    kind = endpoint.virtio
    if kind is None:
        return VfioUserDevice(endpoint.name, endpoint.socket, virtual=endpoint.virtual)
    return VhostUserDevice(
        endpoint.name,
        endpoint.socket,
        kind.type,
        kind.queues,
        kind.queue_size,
        mac=kind.mac,
    )


def _bootable(device: MachineDevice, boot: str | None) -> MachineDevice:
    """The firmware boots from the device named `boot`."""
    return replace(device, bootindex=1) if device.id == boot else device


def _kernel(request: RunRequest, cache: Cache) -> GuestKernel:
    if _is_path(request.kernel):
        return own_kernel(Path(request.kernel), request.kernel_modules)
    return uncompressed(debian_kernel(request.kernel, cache), cache)


def _content(
    request: RunRequest, kernel: GuestKernel | None, drivers: list[str], cache: Cache
) -> InitramfsContent:
    """The modules that were asked for, the stock drivers of the devices that iolane names, and those that
    passed functions had here.
    """
    if kernel is None or request.initrd is not None:
        return InitramfsContent()
    names = [module for module in request.modules if not _is_file(module)]
    kinds = {parse(device).name for device in request.devices}
    if kernel.modules is not None:
        names += [driver for kind, stock in STOCK_DRIVERS.items() if kind in kinds for driver in stock]
        names += drivers
    files = [Path(module) for module in request.modules if _is_file(module)]
    built = [file if file.suffix == ".ko" else build_module(kernel, file, cache) for file in files]
    setup = DHCP_SETUP if "net" in kinds else None
    return InitramfsContent(modules=names, extra_modules=built, setup=setup)


def _pass_on(kind: Type, data: bytes) -> None:
    """The guest's output as ours; what goes to its standard error goes to ours."""
    stream = sys.stderr if kind is Type.STDERR else sys.stdout
    stream.flush()
    view = memoryview(data)
    while view:
        view = view[os.write(stream.fileno(), view) :]
