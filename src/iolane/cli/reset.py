"""`iolane reset DEVICE`: resets a running device."""

from __future__ import annotations

from typing import Annotated

import typer

from iolane.cli.output import Json, print_json


def reset(
    device: Annotated[
        str, typer.Argument(metavar="DEVICE", help="Its name, or PID/NAME; see `iolane devices`.")
    ],
    flr: Annotated[
        bool, typer.Option("--flr", help="A function-level reset instead of a conventional one.")
    ] = False,
    json: Json = False,
) -> int:
    """Reset a running device; the guest's driver sees its registers as after a reset.

    \b
    Examples:
      iolane reset nvme0
      iolane reset nvme0 --flr
    """
    from iolane.carriers.control import ControlClient, find_device

    path, found = find_device(device)
    with ControlClient(path) as client:
        client.reset(found.name, flr=flr)
    if json:
        print_json({"device": found.name, "reset": "flr" if flr else "conventional"})
    else:
        print(f"{found.name} is reset")
    return 0
