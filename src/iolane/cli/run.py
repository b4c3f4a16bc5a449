"""`iolane run`: a guest with devices, its console or one command in it."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iolane.cli.output import Json, print_json, progress

if TYPE_CHECKING:
    from iolane.carriers.control import DeviceReport

SIZES = {"M": 1, "G": 1024}


class Accel(StrEnum):
    """What runs the guest's instructions."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class EngineChoice(StrEnum):
    """What runs the guest."""

    QEMU = "qemu"
    LIBVIRT = "libvirt"


def memory_mib(text: str) -> int:
    """`512M`, `2G`, or a number of MiB."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in SIZES else (text, "M")
    if not number.isdecimal() or not 64 <= int(number) * SIZES[unit] <= 1 << 20:
        raise typer.BadParameter(f"'{text}' is not a size from 64M to 1024G, e.g. 512M or 2G")
    return int(number) * SIZES[unit]


def run(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND", help="For the guest, after --. Without it: the guest's console."),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device", metavar="DEVICE", help="NAME[,key=value...] or FILE.py:CLASS[,...]; may be repeated."
        ),
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(
            "--disk",
            metavar="FILE[,lane=LANE]",
            help="An image; lane paravirtual (virtio, default) or emulated (NVMe); may be repeated.",
        ),
    ] = None,
    net: Annotated[
        list[str] | None,
        typer.Option("--net", metavar="NET", help="tap=NAME, passt or none (default); may be repeated."),
    ] = None,
    passed: Annotated[
        list[str] | None,
        typer.Option(
            "--pass",
            metavar="ADDRESS[,KEY=VALUE]",
            help="A PCI function of this host, see `iolane host`; may be repeated.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="The machine's name for other verbs; by default vm0, vm1 ..."
        ),
    ] = None,
    engine: Annotated[
        EngineChoice, typer.Option("--engine", help="libvirt: a domain of libvirt's on this host.")
    ] = EngineChoice.QEMU,
    connect: Annotated[
        str | None,
        typer.Option("--connect", metavar="URI", help="Where libvirt is; by default qemu:///system."),
    ] = None,
    kernel: Annotated[
        str,
        typer.Option(
            "--kernel", metavar="KERNEL", help="cloud or generic (Debian's), or a kernel image of your own."
        ),
    ] = "cloud",
    initrd: Annotated[
        Path | None, typer.Option("--initrd", metavar="FILE", help="An initrd of your own.")
    ] = None,
    append: Annotated[str, typer.Option("--append", metavar="WORDS", help="More kernel parameters.")] = "",
    module: Annotated[
        list[str] | None,
        typer.Option(
            "--module",
            metavar="MODULE",
            help="Load a kernel module: a name, a .ko, or a .c or folder to build.",
        ),
    ] = None,
    kernel_modules: Annotated[
        Path | None,
        typer.Option("--kernel-modules", metavar="DIR", help="lib/modules/RELEASE of your own kernel."),
    ] = None,
    boot: Annotated[
        str | None,
        typer.Option("--boot", metavar="ID", help="Boot the system on this device instead of a kernel."),
    ] = None,
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help="The guest's memory.")] = "512M",
    cpus: Annotated[
        int, typer.Option("--cpus", min=1, max=255, metavar="N", help="The guest's processors.")
    ] = 1,
    ports: Annotated[
        int | None,
        typer.Option(
            "--ports",
            min=0,
            max=24,
            metavar="N",
            help="Root ports; by default 4 more than there are devices.",
        ),
    ] = None,
    iommu: Annotated[bool, typer.Option("--iommu", help="Put an Intel IOMMU before the devices.")] = False,
    stop_on_fault: Annotated[
        bool,
        typer.Option("--stop-on-fault", help="End the guest when the IOMMU refuses something of a --pass."),
    ] = False,
    accel: Annotated[
        Accel, typer.Option("--accel", help="auto: KVM where it runs Linux, else TCG.")
    ] = Accel.AUTO,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", min=0.1, metavar="SECONDS", help="End the command after this long."),
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option("--trace", metavar="LEVEL[,GLOB]", help="Trace the devices' registers to stderr."),
    ] = None,
    console_log: Annotated[
        Path | None, typer.Option("--console-log", metavar="FILE", help="Keep what the console shows here.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing about progress.")] = False,
    json: Json = False,
) -> int:
    """Run a guest with iolane devices.

    With a command, its output and exit code are those of `iolane run` (124 when --timeout ended it). One word
    is a line for the guest's shell, several are a command with its arguments. Without a command the terminal
    is the guest's console; Ctrl-] ends it.

    --disk and --net are short for the usual --device: for an image block (by vhost-user) or nvme (by
    vfio-user), for a network net (by vhost-user). They take that device's other keys: FILE,read_only=on.

    --pass takes a function from its driver here, gives it to the guest, and gives it back at the end. Its
    keys: id=NAME, rom=off, force=on, group=whole. The guest gets the driver that the function had here.
    mediate=FILE.py:MAP puts iolane in between, with the register map of a BAR (bar=N, by default 0): what
    --trace or trap=GLOB names then traps, or all in MAP where FILE has a function mediate(mediator).

    While it runs, the verbs ps, console, pause, resume, stop, plug, unplug and top work on it from another
    terminal.

    \b
    Examples:
      iolane run --disk disk.raw -- cat /proc/partitions
      iolane run --disk disk.raw,lane=emulated -- cat /proc/partitions
      iolane run --net tap=tap0 -- 'ifconfig eth0 10.0.0.2 && ping -c 1 10.0.0.1'
      iolane run --net passt -- 'udhcpc -n -q -i eth0 && ifconfig eth0'
      iolane run --name web --disk disk.raw
      iolane run --device examples/adder.py:Adder
      iolane run --device nvme,image=disk.raw -- cat /proc/partitions
      iolane run --device nvme,image=disk.raw --json -- 'md5sum < /dev/nvme0n1'
      iolane run --device nvme,image=debian.raw,id=root --boot root --memory 2G
      iolane run --pass 0000:01:00.0 --kernel generic -- cat /proc/partitions
      iolane run --pass 01:00.0,mediate=nvme.py:NvmeRegisters --kernel generic --trace fields -- true
    """
    from iolane.engines.qemu.command_line import Accelerator
    from iolane.operations.machine import EngineName, MachineDescription
    from iolane.operations.run import UNLIMITED, RunRequest, run_command, run_console
    from iolane.operations.shorthand import disk_device, net_devices
    from iolane.operations.tracing import parse_trace

    disks = [disk_device(text) for text in disk or []]
    networks = [device for text in net or [] for device in net_devices(text)]
    description = MachineDescription(
        name=name,
        engine=EngineName(engine.value),
        connect=connect,
        devices=[*(device or []), *disks, *networks],
        passed=list(passed or []),
        kernel=kernel,
        kernel_modules=None if kernel_modules is None else str(kernel_modules),
        initrd=None if initrd is None else str(initrd),
        append=append,
        modules=module or [],
        boot=boot,
        memory_mib=memory_mib(memory),
        cpus=cpus,
        ports=ports,
        iommu=iommu,
        accelerator=None if accel is Accel.AUTO else Accelerator(accel.value),
        console_log=None if console_log is None else str(console_log),
        trace=parse_trace(trace) if trace else None,
        stop_on_fault=stop_on_fault,
    )
    request = RunRequest(description, command or [], UNLIMITED if timeout is None else timeout)
    report = (lambda line: None) if quiet else progress
    if not command:
        devices = run_console(request, report)
        print_json({"devices": devices}) if json else _notes(devices)
        return 0
    result = run_command(request, report, stream=not json)
    if json:
        print_json(result)
    else:
        _notes(result.devices)
    return result.exit_code


def _notes(devices: list[DeviceReport]) -> None:
    """What a device's author should know, once the guest has ended."""
    sys.stdout.flush()
    for device in devices:
        if device.unmodelled:
            progress(f"{device.name} does not model what the guest touched: {', '.join(device.unmodelled)}")
        for fault in device.faults:
            progress(f"{device.name}: {fault}")
