"""`iolane attach DOMAIN DEVICE...`: devices for a domain that libvirt manages."""

from __future__ import annotations

from typing import Annotated

import typer

from iolane.cli.output import Json, print_json, progress

Connect = Annotated[
    str | None,
    typer.Option("--connect", "-c", metavar="URI", help="libvirt's; by default qemu:///system."),
]


def attach(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="Its name or UUID.")],
    device: Annotated[
        list[str] | None,
        typer.Argument(metavar="DEVICE...", help="NAME[,key=value...] or FILE.py:CLASS[,key=value...]."),
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option("--disk", metavar="FILE[,lane=LANE]", help="An image, as with `iolane run`."),
    ] = None,
    net: Annotated[
        list[str] | None,
        typer.Option("--net", metavar="NET", help="tap=NAME or passt, as with `iolane run`."),
    ] = None,
    passed: Annotated[
        list[str] | None,
        typer.Option("--pass", metavar="ADDRESS[,KEY=VALUE]", help="A PCI function of this host."),
    ] = None,
    persistent: Annotated[
        bool, typer.Option("--persistent", help="Also whenever the domain starts again.")
    ] = False,
    connect: Connect = None,
    json: Json = False,
) -> int:
    """Attach devices to a libvirt domain: all of them, or none.

    A running domain gets them now, one that does not run when it starts. Each device has a server of its own
    in the background, which is started anew when it dies, and ends when the device is detached. Block and
    net are libvirt's own vhost-user elements, functions of the host its <hostdev>; other devices reach QEMU
    by its monitor or its command line, which needs QEMU 10.1.

    For domains that start or move with their devices, libvirt must call iolane: see `iolane libvirt-hook`.

    \b
    Examples:
      iolane attach web block,image=/srv/web.raw
      iolane attach web --disk /srv/logs.raw --net tap=tap7 --persistent
      iolane attach web nvme,image=/srv/scratch.raw,id=scratch
      iolane attach web --pass 01:00.0
    """
    from iolane.errors import IolaneError
    from iolane.operations.libvirt.attachment import AttachRequest
    from iolane.operations.libvirt.attachment import attach as attach_devices
    from iolane.operations.shorthand import disk_device, net_devices

    devices = [*(device or []), *(disk_device(text) for text in disk or [])]
    devices += [each for text in net or [] for each in net_devices(text)]
    if not devices and not passed:
        raise IolaneError("nothing to attach", remedy="name a device: block,image=FILE")
    request = AttachRequest(
        domain=domain, devices=devices, passed=passed or [], uri=connect, persistent=persistent
    )
    done = attach_devices(request, progress)
    if json:
        print_json(done)
        return 0
    for each in done:
        when = (
            "now and at each start"
            if each.live and each.persistent
            else "now"
            if each.live
            else "at its next start"
        )
        where = f", served on {each.socket}" if each.socket else ""
        print(f"{each.domain} has {each.id} ({each.carrier}) {when}{where}")
        for note in each.notes:
            progress(f"{each.id}: {note}")
    return 0
