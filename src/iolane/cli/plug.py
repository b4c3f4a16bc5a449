"""`iolane plug MACHINE DEVICE`: gives a running machine a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iolane.cli.machine_name import MachineArgument
from iolane.cli.output import Json, print_json
from iolane.errors import IolaneError


def plug(
    machine: MachineArgument,
    device: Annotated[
        str | None, typer.Argument(metavar="DEVICE", help="NAME[,key=value...] or FILE.py:CLASS[,...].")
    ] = None,
    disk: Annotated[
        str | None,
        typer.Option("--disk", metavar="FILE[,lane=LANE]", help="As `iolane run` has it."),
    ] = None,
    net: Annotated[str | None, typer.Option("--net", metavar="NET", help="As `iolane run` has it.")] = None,
    passed: Annotated[
        str | None,
        typer.Option(
            "--pass", metavar="ADDRESS[,KEY=VALUE]", help="A PCI function of this host, see `iolane host`."
        ),
    ] = None,
    port: Annotated[
        str | None,
        typer.Option("--port", metavar="PORT", help="By default the first free root port."),
    ] = None,
    json: Json = False,
) -> int:
    """Make a device and plug it into a running machine.

    Its server is in the process that runs the machine. Relative paths are relative to where you are. What
    goes by vfio-user presents MSI or the interrupt pin in place of MSI-X, with which QEMU does not survive an
    unplug; presentation=msix has it all the same.

    \b
    Examples:
      iolane plug web nvme,image=disk.raw,id=disk1
      iolane plug web --disk disk.raw
      iolane plug web --net passt,id=net1
      iolane plug web examples/adder.py:Adder
      iolane plug web --pass 01:00.0
    """
    from iolane.carriers.control import connect_machine
    from iolane.operations.shorthand import disk_device, net_devices

    wanted = [*([device] if device else []), *([disk_device(disk)] if disk else [])]
    wanted += net_devices(net) if net else []
    if len(wanted) + (passed is not None) != 1:
        raise IolaneError("plug one thing", remedy="DEVICE, --disk, --net or --pass")
    with connect_machine(machine) as client:
        if passed is not None:
            plugged = client.plug_passed(passed, port=port)
        else:
            plugged = client.plug(wanted[0], folder=Path.cwd(), port=port)
    if json:
        print_json(plugged)
        return 0
    print(f"{plugged.id} is plugged in at {plugged.port} ({plugged.lane}, by {plugged.carrier})")
    if plugged.note:
        print(f"  {plugged.note}")
    return 0
