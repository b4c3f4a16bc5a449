"""`iolane bench`: measuring iolane beside its peers."""

from __future__ import annotations

import typer

from iolane.cli.bench_block import block
from iolane.cli.bench_lanes import lanes
from iolane.cli.bench_migrate import migrate
from iolane.cli.bench_net import net
from iolane.cli.bench_trap import trap

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure iolane beside its peers.")


@app.callback()
def bench() -> None:
    """Measure iolane beside its peers; each benchmark is a verb of its own."""


app.command("trap")(trap)
app.command("block")(block)
app.command("net")(net)
app.command("lanes")(lanes)
app.command("migrate")(migrate)
