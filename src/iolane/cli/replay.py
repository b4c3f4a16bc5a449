"""`iolane replay RECORDING DEVICE`: a recorded session fed to a device model, without a guest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iolane.cli.output import Json, print_json, print_table


def replay(
    recording: Annotated[
        Path, typer.Argument(metavar="RECORDING", help="A file that a mediator's record= made.")
    ],
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="The model, as for `iolane run --device`.")],
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore",
            metavar="PLACES[=WHY]",
            help="Registers or fields that may differ, e.g. 'bar0.CAP.TO=the hardware is slower'.",
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Replay a recorded session against a device model, and say what the model does differently.

    The model gets the recorded accesses and memory. Its registers, interrupts and what it leaves in memory
    are compared, by register and field. Exit code 1: there is a difference that no --ignore explains.

    \b
    Examples:
      iolane replay session.jsonl nvme,image=disk.raw
      iolane replay session.jsonl nvme.py:Nvme --ignore 'bar0.CAP.*' --ignore bar0.VS=newer
    """
    from iolane.devices.registry import create
    from iolane.model.trace.recorded import read_recording
    from iolane.model.trace.replay import Replay

    reasons = {pattern: why for pattern, _, why in (each.partition("=") for each in ignore or ())}
    recorded = read_recording(recording)
    model = create(device)
    try:
        result = Replay(recorded, model, ignore=list(reasons)).run()
    finally:
        model.close()
    if json:
        print_json(result.plain())
        return 1 if result.differences else 0
    lost = f", {recorded.lost} events were not recorded" if recorded.lost else ""
    torn = "" if recorded.complete else ", its end is missing"
    print(
        f"{recording}: {result.accesses} accesses, {result.interrupts} interrupts,"
        f" {result.memory} pieces of memory replayed{lost}{torn}"
    )
    steps = f"{result.timing} polls and interrupts out of step"
    print(f"{result.skipped} accesses of config space not replayed, {steps}")
    for pattern, count in result.ignored.items():
        why = f": {reasons[pattern]}" if reasons[pattern] else ""
        print(f"ignored {pattern}, {count} times{why}")
    if result.first is None:
        print("no difference")
        return 0
    print(f"first difference: {result.first}")
    rows = [
        (place, len(found), found[0].recorded, found[0].replayed, found[0].line)
        for place, found in result.places.items()
    ]
    print_table(("place", "times", "recorded", "replayed", "line"), rows, numeric=("times", "line"))
    return 1
