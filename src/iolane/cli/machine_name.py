"""The argument that names a running machine."""

from __future__ import annotations

from typing import Annotated

import typer

MachineArgument = Annotated[
    str, typer.Argument(metavar="MACHINE", help="Its name, or its process; see `iolane ps`.")
]
