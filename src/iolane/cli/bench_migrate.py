"""`iolane bench migrate`: moving with iolane's devices beside moving with QEMU's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iolane.cli.output import Json, print_json, print_table, progress


def migrate(
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, metavar="N", help="How often each guest moves.")
    ] = 5,
    lazy: Annotated[
        bool,
        typer.Option("--lazy", help="Let the host give each machine its memory while it moves, not before."),
    ] = False,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="Put the result into this document.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 when a target is missed.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing about progress.")] = False,
    json: Json = False,
) -> int:
    """Measure live migration with iolane's vhost-user devices beside QEMU's own.

    Guests with much and little memory, idle and at work, move between two QEMU processes in turns; those that
    don't fit into this machine are left out. Total time and downtime with iolane's devices should be at most
    1.1 times of those with QEMU's.

    \b
    Examples:
      iolane bench migrate
      iolane bench migrate --rounds 3 --json
      iolane bench migrate --rounds 20 --lazy
      iolane bench migrate --write docs/numbers.md --check
    """
    from iolane.bench.migrate import run_migrate_bench
    from iolane.bench.migrate_document import HEADER, rows, write_numbers

    report = (lambda line: None) if quiet else progress
    result = run_migrate_bench(rounds=rounds, lazy=lazy, report=report)
    if write is not None:
        write_numbers(result, write)
    if json:
        print_json(result)
    else:
        print(f"{result.machine}; QEMU {result.qemu}; medians of {result.rounds} rounds\n")
        print_table(HEADER, rows(result), numeric=HEADER[2:])
        print("\nthe last two are iolane's to QEMU's: total time, and how long the guest stood still")
        for line in result.missed:
            print(f"missed: {line}")
    return 1 if check and result.missed else 0
