"""`iolane lab`: an emulated host with an IOMMU, in which passthrough is exercised for real."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iolane.cli.output import Json, print_json, print_table, progress
from iolane.cli.run import memory_mib

if TYPE_CHECKING:
    from iolane.lab.commands import LabRequest

app = typer.Typer(
    name="lab",
    help="An emulated host with an IOMMU, an SR-IOV NIC and an NVMe disk, on any machine.",
    rich_markup_mode=None,
    no_args_is_help=True,
)


class IommuChoice(StrEnum):
    """The IOMMU of the emulated host."""

    VTD = "vtd"
    AMD = "amd"
    NONE = "none"


Iommu = Annotated[IommuChoice, typer.Option("--iommu", help="Intel VT-d, AMD-Vi, or none.")]
Device = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="igb, nvme, e1000e, edu (each [,key=value...]) or none; may be repeated. "
        "By default one of each.",
    ),
]
Share = Annotated[
    Path | None,
    typer.Option(
        "--share",
        metavar="DIR",
        help="The folder that the lab may write, as /lab/share; by default a fresh one.",
    ),
]
Memory = Annotated[str, typer.Option("--memory", metavar="SIZE", help="The lab's memory.")]
Cpus = Annotated[int, typer.Option("--cpus", min=1, max=64, metavar="N", help="The lab's processors.")]
Append = Annotated[str, typer.Option("--append", metavar="WORDS", help="More kernel parameters.")]
Module = Annotated[
    list[str] | None,
    typer.Option("--module", metavar="MODULE", help="Load another module of the kernel; may be repeated."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing about progress.")]


def run(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="For the lab, after --.")],
    iommu: Iommu = IommuChoice.VTD,
    device: Device = None,
    share: Share = None,
    memory: Memory = "2G",
    cpus: Cpus = 2,
    append: Append = "",
    module: Module = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", min=0.1, metavar="SECONDS", help="End the command after this long."),
    ] = None,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Hand all of standard input to the command.")
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Run a command in the lab, as root, with the files of this machine and in the current folder.

    Its output and exit code are those of `iolane lab run` (124 when --timeout ended it). One word is a line
    for the shell, several are a command with its arguments. What it writes is gone with the lab, except in
    /lab/share. docs/lab.md tells what is there.

    \b
    Examples:
      iolane lab run -- 'ls -d /sys/kernel/iommu_groups/*/devices/*'
      iolane lab run --iommu amd -- dmesg
      iolane lab run --device nvme,image=disk.raw --device igb,net=hub --device e1000e,net=hub -- ./test.sh
      iolane lab run --share out --timeout 60 -- 'python probe.py > /lab/share/log'
      iolane lab run --json -- uname -a
    """
    from iolane.lab.commands import run_in_lab

    request = _request(iommu, device, share, memory, cpus, append, module, command, timeout, stdin)
    result = run_in_lab(request, (lambda line: None) if quiet else progress, stream=not json)
    if json:
        print_json(result)
    return result.exit_code


def shell(
    iommu: Iommu = IommuChoice.VTD,
    device: Device = None,
    share: Share = None,
    memory: Memory = "2G",
    cpus: Cpus = 2,
    append: Append = "",
    module: Module = None,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Open a root shell in the lab, on the console of its kernel: faults of the IOMMU are seen as they come.

    The shell starts in the current folder; `exit` or Ctrl-] ends the lab. What is written there is gone with
    it, except in /lab/share. With --json what happened is printed when it has ended.

    \b
    Examples:
      iolane lab shell
      iolane lab shell --iommu amd --device nvme,vfs=2 --share out
    """
    from iolane.lab.commands import shell_in_lab

    request = _request(iommu, device, share, memory, cpus, append, module)
    result = shell_in_lab(request, (lambda line: None) if quiet else progress)
    if json:
        print_json(result)
    return result.exit_code


def demo(quiet: Quiet = False, json: Json = False) -> int:
    """Show the three lanes side by side in the lab, each claim checked: some five minutes.

    A guest reads the same disk as an emulated NVMe by vfio-user, as virtio by vhost-user, and as an NVMe
    function that is passed through; what a read costs is counted.

    \b
    Examples:
      iolane lab demo
      iolane lab demo --json
    """
    from iolane.lab.demo import run_lab_demo
    from iolane.lab.demo_in_lab import Check, LaneSeen

    def show(message: Check | LaneSeen) -> None:
        if isinstance(message, Check):
            print(f"{'ok' if message.ok else 'FAILED'}: {message.what} ({message.detail})", flush=True)

    result = run_lab_demo((lambda line: None) if quiet else progress, (lambda _: None) if json else show)
    if json:
        print_json(result)
        return 0 if result.ok else 1
    header = ("lane", "device", "carrier", "driver", "left the guest", "to QEMU", "to iolane", "interrupts")
    rows = [
        (
            each.lane,
            each.device,
            each.carrier,
            each.driver,
            *(
                "-" if count is None else f"{count:.2f}"
                for count in (each.left, each.to_qemu, each.to_iolane, each.interrupts)
            ),
        )
        for each in result.lanes
    ]
    print("\nfor a read of 4 KiB")
    print_table(header, rows, numeric=header[4:])
    return 0 if result.ok else 1


def _request(
    iommu: IommuChoice,
    device: list[str] | None,
    share: Path | None,
    memory: str,
    cpus: int,
    append: str,
    module: list[str] | None,
    command: list[str] | None = None,
    timeout: float | None = None,
    stdin: bool = False,
) -> LabRequest:
    from iolane.lab.commands import LabRequest
    from iolane.lab.hardware import Iommu as LabIommu
    from iolane.lab.machine import LabConfig
    from iolane.operations.run import UNLIMITED

    config = LabConfig(
        iommu=LabIommu(iommu.value),
        memory_mib=memory_mib(memory),
        cpus=cpus,
        share=share,
        append=append,
        modules=module or [],
    )
    return LabRequest(
        config,
        devices=device or [],
        command=command or [],
        timeout=UNLIMITED if timeout is None else timeout,
        stdin=sys.stdin.buffer.read() if stdin else b"",
    )


app.command("run", context_settings={"allow_interspersed_args": False})(run)
app.command("shell")(shell)
app.command("demo")(demo)
