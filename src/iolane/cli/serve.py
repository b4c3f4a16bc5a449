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
    from iolane.operations.service.device_service import Started


class CarrierName(StrEnum):
    """What may carry a served device."""

    VFIO_USER = "vfio-user"
    VHOST_USER = "vhost-user"


class LogForm(StrEnum):
    """How a log line looks."""

    TEXT = "text"
    JSON = "json"


class LogDetail(StrEnum):
    """What is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


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
    daemon: Annotated[
        bool, typer.Option("--daemon", help="Return once it is ready; it goes on in the background.")
    ] = False,
    pid_file: Annotated[
        Path | None,
        typer.Option("--pid-file", metavar="FILE", help="Keep the process's number here, locked."),
    ] = None,
    supervise: Annotated[
        bool, typer.Option("--supervise", help="Serve in a child that is started anew when it dies or hangs.")
    ] = False,
    memory_limit: Annotated[
        str | None,
        typer.Option("--memory-limit", metavar="SIZE", help="Private memory at most, guest memory apart."),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            "--log",
            metavar="FILE",
            help="Log here, not to stderr; with --daemon beside the socket by default.",
        ),
    ] = None,
    log_format: Annotated[
        LogForm,
        typer.Option("--log-format", help="json: an object a line."),
    ] = LogForm.TEXT,
    log_level: Annotated[
        LogDetail | None,
        typer.Option(
            "--log-level", help="Default: warning; info with --log, --daemon, json, in the journal."
        ),
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

    A service manager that speaks sd_notify is told. docs/service.md has the way to systemd.

    \b
    Examples:
      iolane serve adder.py:Adder --socket /tmp/adder.sock
      iolane serve nvme,image=disk.raw --socket /run/disk.sock
      iolane serve block,image=disk.raw --socket /run/disk.sock
      iolane serve block,image=disk.raw --socket /run/disk.sock --carrier vfio-user
      iolane serve block,image=disk.raw --socket /run/disk.sock --daemon --supervise --pid-file /run/disk.pid
    """
    from iolane.devices.specification import Carrier
    from iolane.errors import IolaneError
    from iolane.operations.service.device_service import ServiceRequest, serve_device, serve_in_background
    from iolane.operations.service.limits import parse_size
    from iolane.operations.service.logs import is_structured, settings_of
    from iolane.operations.serving import wait_for_end
    from iolane.operations.tracing import parse_trace

    request = ServiceRequest(
        device=device,
        socket=socket,
        carrier=None if carrier is None else Carrier(carrier.value),
        name=name,
        trace=parse_trace(trace) if trace else None,
        pid_file=pid_file,
        log=settings_of(log, log_format.value, None if log_level is None else log_level.value, daemon=daemon),
        memory_limit=None if memory_limit is None else parse_size(memory_limit),
        supervised=supervise,
    )

    def until(descriptor: int | None) -> None:
        with contextlib.suppress(Terminated):  # how a service is stopped
            wait_for_end(lifeline if descriptor is None else descriptor)

    if daemon:
        _announce(serve_in_background(request, until), json, foreground=False)
        return 0
    ready = False

    def announce(started: Started) -> None:
        nonlocal ready
        ready = True  # from the first word on: who reads it may end us at once
        _announce(started, json, foreground=True)

    try:
        serve_device(request, announce, until)
    except Terminated:
        if not ready:
            raise
    except IolaneError as error:
        if lifeline is not None:
            print_json({"error": error.message, "remedy": error.remedy}, indent=0)
        if log is None and is_structured(request.log):
            return 1  # stderr has it, in the log's form
        raise
    return 0


def _announce(started: Started, json: bool, *, foreground: bool) -> None:
    ready = started.ready
    for note in started.notes:
        progress(note)
    if json:
        print_json(ready, indent=0)
        return
    print(f"{ready.name} ({ready.type}) is served by {ready.carrier} on {ready.socket}\n")
    if ready.qemu:
        print(f"for QEMU, with guest memory that can be shared:\n  {shlex.join(ready.qemu)}\n")
    if ready.libvirt:
        print(f"for libvirt, in the domain's XML:\n{ready.libvirt}\n")
    if ready.uml:
        print(f"for User Mode Linux, as a kernel parameter:\n  {ready.uml}\n")
    print("Ctrl-C ends it" if foreground else f"process {ready.pid} goes on; SIGTERM ends it", flush=True)
