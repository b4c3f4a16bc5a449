"""`iolane resume MACHINE`: lets a paused machine go on."""

from __future__ import annotations

from iolane.cli.machine_name import MachineArgument
from iolane.cli.output import Json, print_json


def resume(machine: MachineArgument, json: Json = False) -> int:
    """Let a paused machine go on.

    \b
    Examples:
      iolane resume web
    """
    from iolane.carriers.control import connect_machine

    with connect_machine(machine) as client:
        client.resume()
        state = client.show().state.value
    if json:
        print_json({"machine": machine, "state": state})
    else:
        print(f"{machine} is {state}")
    return 0
