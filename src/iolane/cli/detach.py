"""`iolane detach DOMAIN ID`: a device out of a domain that libvirt manages."""

from __future__ import annotations

from typing import Annotated

import typer

from iolane.cli.attach import Connect
from iolane.cli.output import Json, print_json


def detach(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="Its name or UUID.")],
    device: Annotated[
        str, typer.Argument(metavar="ID", help="The device's id, as `iolane attach` printed it.")
    ],
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="How long the guest has to let go.")
    ] = 30.0,
    connect: Connect = None,
    json: Json = False,
) -> int:
    """Detach a device from a libvirt domain, and end its server.

    The guest is asked to let go of it. If it refuses, or does not answer in time, the device stays and the
    exit code is 1. A device that is there at each start is taken out of that too.

    \b
    Examples:
      iolane detach web block0
      iolane detach web pci-01-00.0 --timeout 60
    """
    from iolane.operations.libvirt.attachment import detach as detach_device

    done = detach_device(domain, device, uri=connect, timeout=timeout)
    if json:
        print_json(done)
    else:
        print(f"{done.domain} is without {done.id}")
    return 0
