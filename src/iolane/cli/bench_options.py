"""What the verbs of `iolane bench` have in common: their options, and how a result goes where they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from iolane.cli.output import progress

Rounds = Annotated[int, typer.Option("--rounds", min=1, metavar="N", help="How often each case is measured.")]
Milliseconds = Annotated[
    int, typer.Option("--milliseconds", min=10, metavar="MS", help="How long one measurement takes.")
]
Write = Annotated[
    Path | None, typer.Option("--write", metavar="FILE", help="Put the result into this document.")
]
Check = Annotated[bool, typer.Option("--check", help="Exit with 1 when a target is missed.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing about progress.")]


def reporter(quiet: bool) -> Callable[[str], None]:
    """What is told of each step."""
    return (lambda line: None) if quiet else progress
