"""`iolane unplug MACHINE DEVICE`: asks a running machine's guest to let go of a device."""

from __future__ import annotations

from typing import Annotated

import typer

from iolane.cli.machine_name import MachineArgument
from iolane.cli.output import Json, print_json


def unplug(
    machine: MachineArgument,
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="Its id; see `iolane ps`.")],
    timeout: Annotated[
        float,
        typer.Option("--timeout", min=0, max=86400, metavar="SECONDS", help="For the guest."),
    ] = 30.0,
    json: Json = False,
) -> int:
    """Ask the guest to let go of a device, and unplug it.

    The guest agrees (exit code 0), refuses, or does not answer within --timeout (1). It may still let go
    later: then the device is unplugged all the same. What the engine would not survive is refused.

    \b
    Examples:
      iolane unplug web disk1
      iolane unplug web net1 --timeout 5
    """
    from iolane.carriers.control import connect_machine
    from iolane.engines.outcome import UnplugOutcome

    with connect_machine(machine) as client:
        outcome = UnplugOutcome(client.unplug(device, timeout))
    if json:
        print_json({"machine": machine, "device": device, "outcome": outcome.value})
        return 0 if outcome is UnplugOutcome.AGREED else 1
    outcome.require(device)
    print(f"{device} is unplugged")
    return 0
