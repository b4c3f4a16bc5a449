"""`iolane serve DEVICE --socket PATH`: one device for a guest that somebody else runs."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Annotated

import typer

from iolane.cli.output import Json, print_json
from iolane.cli.signals import Terminated


def serve(
    device: Annotated[
        str, typer.Argument(metavar="DEVICE", help="NAME[,key=value...] or FILE.py:CLASS[,key=value...].")
    ],
    socket: Annotated[Path, typer.Option("--socket", metavar="PATH", help="The unix socket to listen on.")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="The device's name in `iolane devices`.")
    ] = None,
    trace: Annotated[
        str | None, typer.Option("--trace", metavar="LEVEL[,GLOB]", help="Trace the device to stderr.")
    ] = None,
    lifeline: Annotated[
        int | None, typer.Option("--lifeline", hidden=True, help="End when this descriptor reaches its end.")
    ] = None,
    json: Json = False,
) -> int:
    """Serve a device over vfio-user until Ctrl-C or SIGTERM.

    The device keeps its state when its client goes away, and serves the next one.

    \b
    Examples:
      iolane serve adder.py:Adder --socket /tmp/adder.sock
      iolane serve nvme,image=disk.raw --socket /run/disk.sock
    """
    from iolane.operations.serving import DeviceServers, ready_lines, wait_for_end
    from iolane.operations.tracing import parse_trace

    wanted = parse_trace(trace) if trace else None
    with DeviceServers([device], socket=socket, name=name, trace=wanted) as servers:
        ready = ready_lines(servers.served[0])
        if json:
            print_json(ready, indent=0)
        else:
            print(f"{ready.name} ({ready.type}) is served on {ready.socket}\n")
            print(f"for QEMU, with guest memory that can be shared:\n  {shlex.join(ready.qemu)}\n")
            print(f"for libvirt, in the domain's XML:\n{ready.libvirt}\n\nCtrl-C ends it", flush=True)
        with contextlib.suppress(Terminated):  # how a service is stopped
            wait_for_end(lifeline)
    return 0
