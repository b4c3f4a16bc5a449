"""`iolane bench lanes`: one disk in every lane of one guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from iolane.cli.bench_options import Check, Milliseconds, Quiet, Rounds, Write, reporter
from iolane.cli.output import Json, print_json, print_table

if TYPE_CHECKING:
    from iolane.bench.lanes import LanesResult


def lanes(
    rounds: Rounds = 3,
    milliseconds: Milliseconds = 3000,
    disk: Annotated[
        list[str] | None,
        typer.Option(
            "--disk",
            metavar="DISK",
            help="emulated, emulated-qemu, paravirtual, virtio-qemu, direct, mediated; may be repeated. "
            "By default all of them.",
        ),
    ] = None,
    write: Write = None,
    check: Check = False,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Measure one disk in every lane of one guest: traps, interrupts, host CPU, rate and latency.

    Emulated NVMe and virtio by iolane, the same by QEMU, and NVMe passed through, direct and with iolane in
    between. It all runs in the lab, whose processor is emulated: ratios and counts carry over, times do not.
    Takes some ten minutes. A document gets a picture, too; the target is what the mediator may cost.

    \b
    Examples:
      iolane bench lanes
      iolane bench lanes --rounds 1 --disk direct --disk mediated --check
      iolane bench lanes --write docs/numbers.md
    """
    from iolane.bench.lanes import run_lanes_bench, write_numbers

    result = run_lanes_bench(
        rounds=rounds, milliseconds=milliseconds, disks=disk or [], report=reporter(quiet)
    )
    if write is not None:
        write_numbers(result, write)
    if json:
        print_json(result)
    else:
        _print(result)
    return 1 if check and result.missed else 0


def _print(result: LanesResult) -> None:
    from iolane.bench.lanes import COLUMNS, COUNTS, rows

    print(f"{result.machine}; in the lab; medians of {result.rounds} rounds of {result.milliseconds} ms")
    print("rate, p50, p99 and host CPU: ratios to direct passthrough; counts: for one request")
    header = (*COLUMNS, *COUNTS)
    for load in [each.load for each in result.disks[0].loads] if result.disks else []:
        print(f"\nrandom {load}")
        print_table(header, rows(result, load), numeric=header[3:])
    print()
    for line in result.missed:
        print(f"missed: {line}")
