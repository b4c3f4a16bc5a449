"""`iolane bench block`: block requests beside qemu-storage-daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iolane.cli.bench_options import Check, Quiet, Rounds, Write, reporter
from iolane.cli.output import Json, print_json


def block(
    rounds: Rounds = 3,
    folder: Annotated[
        Path | None, typer.Option("--folder", metavar="DIR", help="Where the real file is made.")
    ] = None,
    write: Write = None,
    check: Check = False,
    quiet: Quiet = False,
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

    result = run_block_bench(rounds=rounds, folder=folder, report=reporter(quiet))
    if write is not None:
        write_numbers(result, write)
    if json:
        print_json(result)
    else:
        print(to_markdown(result))
    return 1 if check and result.missed else 0
