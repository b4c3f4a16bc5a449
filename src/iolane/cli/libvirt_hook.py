"""`iolane libvirt-hook`: what libvirt calls when a domain starts, moves and ends."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from iolane.cli.output import Json, print_json


def libvirt_hook(
    domain: Annotated[str | None, typer.Argument(metavar="DOMAIN", help="As libvirt gives it.")] = None,
    operation: Annotated[str | None, typer.Argument(metavar="OPERATION", help="prepare, release ...")] = None,
    phase: Annotated[str | None, typer.Argument(metavar="PHASE", help="begin or end.")] = None,
    extra: Annotated[str | None, typer.Argument(metavar="EXTRA", help="Nothing, as yet.")] = None,
    install: Annotated[
        bool, typer.Option("--install", help="Have libvirt on this host call it, from its restart on.")
    ] = False,
    json: Json = False,
) -> int:
    """Serve a domain's devices when libvirt starts it, and end that when it has ended.

    libvirt calls this with the domain's XML on stdin, once `iolane libvirt-hook --install` was run as root
    and libvirtd (or virtqemud) was restarted. The same on both hosts lets domains migrate with their
    devices.

    \b
    Examples:
      iolane libvirt-hook --install
    """
    from iolane.errors import IolaneError
    from iolane.operations.libvirt import hook

    if install:
        hook.install()
        if json:
            print_json({"installed": str(hook.SCRIPT)})
            return 0
        print(f"{hook.SCRIPT} calls iolane; restart libvirtd or virtqemud for it to be seen")
        return 0
    if domain is None or operation is None or phase is None:
        raise IolaneError("libvirt calls this by itself", remedy="iolane libvirt-hook --install")
    hook.run_hook(domain, operation, phase, sys.stdin.read())
    return 0
