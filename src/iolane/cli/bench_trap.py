"""`iolane bench trap`: a trapped access beside a bare C server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iolane.cli.bench_options import Check, Quiet, Rounds, Write, reporter
from iolane.cli.output import Json, print_json, print_table

if TYPE_CHECKING:
    from iolane.bench.trap import TrapBenchResult


def trap(
    rounds: Rounds = 7, write: Write = None, check: Check = False, quiet: Quiet = False, json: Json = False
) -> int:
    """Measure what a trapped access costs beside a bare C server with the same messages.

    A C client, built on demand, drives both in turns within one run. A target is missed where iolane costs
    more times as much as its limit says.

    \b
    Examples:
      iolane bench trap
      iolane bench trap --rounds 3 --json
      iolane bench trap --write docs/numbers.md --check
    """
    from iolane.bench.trap import run_trap_bench, write_numbers

    result = run_trap_bench(rounds=rounds, report=reporter(quiet))
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
