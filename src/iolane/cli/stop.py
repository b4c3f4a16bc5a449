"""`iolane stop MACHINE`: ends a running machine."""

from __future__ import annotations

from typing import Annotated

import typer

from iolane.cli.machine_name import MachineArgument
from iolane.cli.output import Json, print_json


def stop(
    machine: MachineArgument,
    force: Annotated[bool, typer.Option("--force", help="End it at once, without asking the guest.")] = False,
    timeout: Annotated[
        float,
        typer.Option("--timeout", min=0, max=86400, metavar="SECONDS", help="For the guest."),
    ] = 30.0,
    json: Json = False,
) -> int:
    """Have a machine's guest power itself off, and wait for its end.

    A guest that does not within --timeout goes on; --force ends it as pulling the plug would.

    \b
    Examples:
      iolane stop web
      iolane stop web --timeout 120
      iolane stop web --force
    """
    from iolane.carriers.control import connect_machine

    with connect_machine(machine) as client:
        client.shut_down(force=force, timeout=timeout)
    if json:
        print_json({"machine": machine, "state": "ended"})
    else:
        print(f"{machine} has ended")
    return 0
