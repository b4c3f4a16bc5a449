"""`iolane pause MACHINE`: holds a running machine."""

from __future__ import annotations

from iolane.cli.machine_name import MachineArgument
from iolane.cli.output import Json, print_json


def pause(machine: MachineArgument, json: Json = False) -> int:
    """Hold a running machine: its processors, then its devices.

    \b
    Examples:
      iolane pause web
    """
    from iolane.carriers.control import connect_machine

    with connect_machine(machine) as client:
        client.pause()
        state = client.show().state.value
    if json:
        print_json({"machine": machine, "state": state})
    else:
        print(f"{machine} is {state}")
    return 0
