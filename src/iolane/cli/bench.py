"""`iolane bench`: measuring iolane beside its peers."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure iolane beside its peers.")


@app.callback()
def bench() -> None:
    """Measure iolane beside its peers."""
