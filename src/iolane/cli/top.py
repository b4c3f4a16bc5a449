"""`iolane top`: what the devices of all machines do now."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from iolane.cli.output import Json, print_json, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from iolane.operations.machine.rates import DeviceRates

TEXT = ("machine", "device", "lane", "carrier")
NUMBERS = (
    *("traps", "traps/s", "kicks", "kicks/s", "interrupts", "int/s"),
    *("bytes", "bytes/s", "troubles"),
)
BYTES = ("dma_bytes_read", "dma_bytes_written")


def top(
    once: Annotated[bool, typer.Option("--once", help="One --interval, one table.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, max=3600, metavar="SECONDS", help="Between two looks.")
    ] = 1.0,
    json: Json = False,
) -> int:
    """Watch traps, kicks, interrupts and bytes of every device, and their rates.

    Devices of all machines of this user, and those that `iolane serve` serves. Bytes are what devices read
    and write in guests' memory. Ctrl-C ends it. With --json a line for each interval, or one document with
    --once.

    \b
    Examples:
      iolane top
      iolane top --once
      iolane top --once --json --interval 5
    """
    from iolane.operations.machine.rates import look, rates

    before = look()

    def step() -> list[DeviceRates]:
        nonlocal before
        time.sleep(interval)
        after = look()
        rows, before = rates(before, after), after
        return rows

    if once or json or not sys.stdout.isatty():
        while True:
            rows = step()
            print_json(rows, indent=2 if once else 0) if json else _print(rows)
            if once:
                return 0
    _live(step)
    return 0


def _print(rows: list[DeviceRates]) -> None:
    if not rows:
        print("no device is served now (see `iolane run`)")
        return
    print_table((*TEXT, *NUMBERS), [cells(row) for row in rows], numeric=NUMBERS)


def cells(row: DeviceRates) -> tuple[str, ...]:
    """One line of the table."""
    first = (row.machine or "-", row.device, row.lane or "-", row.carrier or "-")
    if row.counters is None or row.rates is None:
        return (*first, *("-" for _ in NUMBERS))
    numbers: list[str] = []
    for name in ("traps", "kicks", "interrupts"):
        numbers += [_short(row.counters[name]), _short(row.rates[name])]
    numbers += [_short(sum(row.counters[name] for name in BYTES), 1024)]
    numbers += [_short(sum(row.rates[name] for name in BYTES), 1024)]
    return (*first, *numbers, str(row.troubles))


def _short(number: float, base: int = 1000) -> str:
    """At most four digits and a unit.

    >>> [_short(number) for number in (0, 999, 12345, 2500000)]
    ['0', '999', '12.3k', '2.5M']
    """
    for unit in ("", "k", "M", "G"):
        if number < base or unit == "G":
            return f"{number:.0f}{unit}" if not unit or number >= 100 else f"{number:.1f}{unit}"
        number /= base
    raise AssertionError


def _live(step: Callable[[], list[DeviceRates]]) -> None:
    """On a terminal, until Ctrl-C."""
    from rich.live import Live

    with Live(_table([]), screen=True, auto_refresh=False) as live:
        while True:
            live.update(_table(step()), refresh=True)


def _table(rows: list[DeviceRates]) -> Table:
    from rich.table import Table

    table = Table(title="iolane top; Ctrl-C ends it", expand=True, header_style="bold")
    for name in (*TEXT, *NUMBERS):
        table.add_column(name, justify="left" if name in TEXT else "right", no_wrap=True)
    for row in rows:
        busy = row.rates is not None and any(row.rates.values())
        table.add_row(*cells(row), style="" if busy else "dim")
    return table
