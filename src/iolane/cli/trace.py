"""`iolane trace DEVICE`: the accesses of a running device, as they happen."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from iolane.cli.output import Json, print_json, progress


class Level(StrEnum):
    """The ladder of tracing, as far as another process can climb it."""

    OFF = "off"
    COUNTERS = "counters"
    REGISTERS = "registers"
    FIELDS = "fields"


class Direction(StrEnum):
    """Which accesses to show."""

    READ = "read"
    WRITE = "write"


def trace(
    device: Annotated[
        str, typer.Argument(metavar="DEVICE", help="Its name, or PID/NAME; see `iolane devices`.")
    ],
    level: Annotated[
        Level, typer.Option("--level", help="How much to show; off and counters show no accesses.")
    ] = Level.FIELDS,
    filter_: Annotated[
        str | None, typer.Option("--filter", metavar="GLOB", help="Registers to show, e.g. 'bar0.*'.")
    ] = None,
    direction: Annotated[
        Direction | None, typer.Option("--direction", help="Only reads or only writes.")
    ] = None,
    set_only: Annotated[
        bool,
        typer.Option("--set", help="Set the level and return; it stays. Without it, stream until Ctrl-C."),
    ] = False,
    json: Json = False,
) -> int:
    """Show a running device's register accesses, named by register and field.

    The level goes back to what it was when the stream ends. Levels off and counters have no stream.

    \b
    Examples:
      iolane trace nvme0
      iolane trace nvme0 --filter 'bar0.*' --direction write
      iolane trace nvme0 --level counters --set
      iolane trace nvme0 --level off --set
    """
    from iolane.carriers.control import ControlClient, SetTrace, find_device

    path, found = find_device(device)
    stream = not set_only and level in (Level.REGISTERS, Level.FIELDS)
    request = SetTrace(found.name, level.value, filter_, direction.value if direction else None, json, stream)
    with ControlClient(path) as client:
        client.set_trace(request)
        if not stream:
            print_json({"device": found.name, "trace": level}) if json else print(
                f"{found.name}: trace {level}"
            )
            return 0
        progress(f"{found.name}: tracing {level}, Ctrl-C ends it")
        for event in client.events():
            print_json(event.event, indent=0) if json else print(event.event, flush=True)
            if event.lost:
                progress(f"({event.lost} accesses not shown: too many at once)")
    progress(f"{found.name} is no longer served")
    return 0
