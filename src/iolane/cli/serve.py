"""`iolane serve DEVICE --socket PATH`: one device for a guest that somebody else runs."""

from __future__ import annotations

import contextlib
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iolane.cli.output import Json, print_json, progress
from iolane.cli.signals import Terminated

if TYPE_CHECKING:
    from iolane.operations.ready import Ready


class CarrierName(StrEnum):
    """What may carry a served device."""

    VFIO_USER = "vfio-user"
    VHOST_USER = "vhost-user"


def serve(
    device: Annotated[
        str, typer.Argument(metavar="DEVICE", help="NAME[,key=value...] or FILE.py:CLASS[,key=value...].")
    ],
    socket: Annotated[Path, typer.Option("--socket", metavar="PATH", help="The unix socket to listen on.")],
    carrier: Annotated[
        CarrierName | None,
        typer.Option("--carrier", help="By default vhost-user for block and net, else vfio-user."),
    ] = None,
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
    """Serve a device until Ctrl-C or SIGTERM.

    By vfio-user QEMU gets a PCI function: any device. By vhost-user QEMU, libvirt, User Mode Linux, DPDK or
    libblkio get the rings of a virtio device. The device keeps its state when its client goes away, and
    serves the next one.

    \b
    Examples:
      iolane serve adder.py:Adder --socket /tmp/adder.sock
      iolane serve nvme,image=disk.raw --socket /run/disk.sock
      iolane serve block,image=disk.raw --socket /run/disk.sock
      iolane serve block,image=disk.raw --socket /run/disk.sock --carrier vfio-user
    """
    from iolane.devices.specification import Carrier
    from iolane.operations.ready import ready_lines
    from iolane.operations.serving import DeviceServers, images_in_use, wait_for_end
    from iolane.operations.tracing import parse_trace

    wanted = parse_trace(trace) if trace else None
    chosen = None if carrier is None else Carrier(carrier.value)
    with DeviceServers([device], socket=socket, name=name, carrier=chosen, trace=wanted) as servers:
        for problem in images_in_use(servers):
            progress(f"for now {problem.message}")
        ready = ready_lines(servers.endpoints[0])
        with contextlib.suppress(Terminated):  # how a service is stopped
            if json:
                print_json(ready, indent=0)
            else:
                _print(ready)
            wait_for_end(lifeline)
    return 0


def _print(ready: Ready) -> None:
    print(f"{ready.name} ({ready.type}) is served by {ready.carrier} on {ready.socket}\n")
    if ready.qemu:
        print(f"for QEMU, with guest memory that can be shared:\n  {shlex.join(ready.qemu)}\n")
    if ready.libvirt:
        print(f"for libvirt, in the domain's XML:\n{ready.libvirt}\n")
    if ready.uml:
        print(f"for User Mode Linux, as a kernel parameter:\n  {ready.uml}\n")
    print("Ctrl-C ends it", flush=True)
