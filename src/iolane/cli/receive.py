"""`iolane receive URI`: takes a machine from another host, and runs it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iolane.cli.output import Json, print_json, progress
from iolane.cli.signals import Terminated

if TYPE_CHECKING:
    from iolane.operations.machine import Machine
    from iolane.operations.migration.uri import Place


def receive(
    uri: Annotated[str, typer.Argument(metavar="URI", help="unix:PATH or tcp:HOST:PORT to wait at.")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Its name here; by default as it was.")
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option("--device", metavar="ID=DEVICE", help="What a device of it is here; may be repeated."),
    ] = None,
    passed: Annotated[
        list[str] | None,
        typer.Option(
            "--pass",
            metavar="ADDRESS,id=NAME",
            help="A function for one that the machine leaves behind; may be repeated.",
        ),
    ] = None,
    kernel: Annotated[
        Path | None, typer.Option("--kernel", metavar="FILE", help="For a guest with a kernel of its own.")
    ] = None,
    initrd: Annotated[
        Path | None, typer.Option("--initrd", metavar="FILE", help="For a guest with an initrd of its own.")
    ] = None,
    folder: Annotated[
        list[Path] | None,
        typer.Option(
            "--folder",
            metavar="FOLDER",
            help="The source may name files in it; may be repeated. Over unix: anywhere where none is given.",
        ),
    ] = None,
    tls: Annotated[
        Path | None,
        typer.Option("--tls", metavar="DIR", help="ca-cert.pem, server-cert.pem, server-key.pem: encrypt."),
    ] = None,
    json: Json = False,
) -> int:
    """Wait for a machine that `iolane migrate` sends, and run it until it ends or goes on to another host.

    It is made as it was there: the same devices at the same root ports, the same kernel. Images must be
    shared between the two hosts. --device says what is called otherwise here. What can't be had is refused
    with the reason before anything moves, and the next machine is waited for.

    \b
    Examples:
      iolane receive unix:/run/there.sock --name web2
      iolane receive tcp:0.0.0.0:4444 --tls /etc/pki/iolane --folder /srv/images
      iolane receive tcp:0.0.0.0:4444 --tls /etc/pki/iolane --device disk=block,image=/srv/a.raw
      iolane receive unix:/run/there.sock --pass 03:10.2,id=nic
    """
    from iolane.operations.receive import ReceiveRequest
    from iolane.operations.receive import receive as take

    request = ReceiveRequest(
        uri=uri,
        name=name,
        devices=device or [],
        kernel=kernel,
        initrd=initrd,
        folders=folder or [],
        tls=tls,
        passed=passed or [],
    )

    def waiting(place: Place) -> None:
        print_json({"waiting": str(place)}, indent=0) if json else progress(f"waiting at {place}")

    def arrived(machine: Machine) -> None:
        print_json({"arrived": machine.name}, indent=0) if json else progress(f"{machine.name} runs here")

    with contextlib.suppress(Terminated):  # how a service is stopped
        machine = take(request, progress, waiting=waiting, arrived=arrived)
        how = f"runs at {machine.moved_to}" if machine.moved_to else "has ended"
        if json:
            print_json({"ended": machine.name, "moved_to": machine.moved_to}, indent=0)
        else:
            progress(f"{machine.name} {how}")
    return 0
