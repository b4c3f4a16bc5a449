"""`iolane bench net`: packets beside DPDK's testpmd."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iolane.cli.bench_options import Milliseconds, Quiet, Rounds, Write, reporter
from iolane.cli.output import Json, print_json, print_table

if TYPE_CHECKING:
    from iolane.bench.net import NetBenchResult


def net(
    rounds: Rounds = 5,
    milliseconds: Milliseconds = 1000,
    write: Write = None,
    quiet: Quiet = False,
    json: Json = False,
) -> int:
    """Measure packets of 64 and 1500 bytes by vhost-user beside DPDK's testpmd.

    A C front end, built on demand, loads both in turns within one run. testpmd is fetched from Debian's
    packages into the cache; where it can't be had, iolane is measured alone.

    \b
    Examples:
      iolane bench net
      iolane bench net --rounds 3 --milliseconds 300 --json
      iolane bench net --write docs/numbers.md
    """
    from iolane.bench.net import run_net_bench, write_numbers

    result = run_net_bench(rounds=rounds, milliseconds=milliseconds, report=reporter(quiet))
    if write is not None:
        write_numbers(result, write)
    if json:
        print_json(result)
    else:
        _print(result)
    return 0


def _print(result: NetBenchResult) -> None:
    from iolane.bench.net import cells, losses, ratios

    beside = f"testpmd {result.dpdk}" if result.dpdk else f"without testpmd: {result.without}"
    print(f"{result.machine}; {beside}; medians of {result.rounds} rounds\n")
    header = ("packets", "server", "packets/s", "CPU us", "p50 us", "p99 us", "ratio", "CPU ratio")
    rows: list[tuple[str, ...]] = []
    for item in result.cases:
        if item.testpmd is not None:
            rows.append((item.case.name, "testpmd", *cells(item.testpmd), "", ""))
        rows.append((item.case.name, "iolane", *cells(item.iolane), *ratios(item)))
    print_table(header, rows, numeric=header[2:])
    print(f"\n{losses(result)}")
    print("ratios are iolane's to testpmd's: more packets are better, less CPU is better")
