"""`iolane bench`: measuring iolane beside its peers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iolane.cli.bench_lanes import lanes
from iolane.cli.bench_migrate import migrate
from iolane.cli.bench_net import net
from iolane.cli.output import Json, print_json, print_table, progress

if TYPE_CHECKING:
    from iolane.bench.trap import TrapBenchResult

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure iolane beside its peers.")


@app.callback()
def bench() -> None:
    """Measure iolane beside its peers; each benchmark is a verb of its own."""


@app.command("trap")
def trap(
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, metavar="N", help="How often each case is measured.")
    ] = 7,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="Put the result into this document.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 when a ratio is over its limit.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing about progress.")] = False,
    json: Json = False,
) -> int:
    """Measure what a trapped access costs beside a bare C server with the same messages.

    A C client, built on demand, drives both in turns within one run.

    \b
    Examples:
      iolane bench trap
      iolane bench trap --rounds 3 --json
      iolane bench trap --write docs/numbers.md --check
    """
    from iolane.bench.trap import run_trap_bench, write_numbers

    result = run_trap_bench(rounds=rounds, report=(lambda line: None) if quiet else progress)
    if write is not None:
        write_numbers(result, write)
    if json:
        print_json(result)
    else:
        _print(result)
    return 1 if check and result.over_limit else 0


def _print(result: TrapBenchResult) -> None:
    print(f"{result.machine}; medians of {result.rounds} rounds\n")
    header = ("access (us)", "C p50", "C p99", "C CPU", "iolane p50", "iolane p99", "iolane CPU", "ratio")
    rows = [
        (
            item.case.name,
            *(
                f"{value / 1000:.2f}"
                for side in (item.bare, item.iolane)
                for value in (side.p50, side.p99, side.cpu)
            ),
            f"{item.ratio:.2f}",
        )
        for item in result.cases
    ]
    print_table(header, rows, numeric=header[1:])
    print("\nthe ratio of posted writes is of their drain: wall time up to the reply of a read behind them")
    for name in result.over_limit:
        print(f"over the limit of {result.limit}: {name}")


@app.command("block")
def block(
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, metavar="N", help="How often each load is measured.")
    ] = 3,
    folder: Annotated[
        Path | None, typer.Option("--folder", metavar="DIR", help="Where the real file is made.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="Put the result into this document.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 when a target is missed.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing about progress.")] = False,
    json: Json = False,
) -> int:
    """Measure block requests by vhost-user beside qemu-storage-daemon, and the machine's own limit.

    A C front end, built on demand, loads all of them in turns within one run.

    \b
    Examples:
      iolane bench block
      iolane bench block --rounds 5 --json
      iolane bench block --write docs/numbers.md --check
    """
    from iolane.bench.block import run_block_bench, to_markdown, write_numbers

    report = (lambda line: None) if quiet else progress
    result = run_block_bench(rounds=rounds, folder=folder, report=report)
    if write is not None:
        write_numbers(result, write)
    if json:
        print_json(result)
    else:
        print(to_markdown(result))
    return 1 if check and result.missed else 0


app.command("net")(net)
app.command("lanes")(lanes)
app.command("migrate")(migrate)
