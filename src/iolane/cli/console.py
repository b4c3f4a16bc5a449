"""`iolane console MACHINE`: the terminal as a running machine's console."""

from __future__ import annotations

from typing import Annotated

import typer

from iolane.cli.machine_name import MachineArgument
from iolane.cli.output import Json, print_json, progress


def console(
    machine: MachineArgument,
    show: Annotated[bool, typer.Option("--show", help="Print what it has shown so far, and return.")] = False,
    json: Json = False,
) -> int:
    """Be a running machine's console; Ctrl-] leaves it, and the machine goes on.

    Any number of terminals may have it at once. --json prints what it has shown, as --show does.

    \b
    Examples:
      iolane console web
      iolane console web --show
    """
    from iolane.carriers.control import connect_machine
    from iolane.operations.terminal import ESCAPE_NAME, interact, require_terminal

    with connect_machine(machine) as client:
        if show or json:
            text = client.console_text()
            print_json({"machine": machine, "console": text}) if json else print(text, end="")
            return 0
        require_terminal(f"iolane console {machine} --show")
        progress(f"the console of {machine}; {ESCAPE_NAME} leaves it")
        with client.open_console() as remote:
            escaped = interact(remote)
    print("\r")
    progress(f"{machine} goes on" if escaped else f"{machine} has ended")
    return 0
