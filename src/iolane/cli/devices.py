"""`iolane devices`: what every serving process of this user does now, or what devices there are to serve."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from iolane.cli.output import Json, print_json, print_table, print_wrapped

if TYPE_CHECKING:
    from iolane.carriers.control import DeviceReport, ServerReport


def devices(
    watch: Annotated[
        bool, typer.Option("--watch", help="Print again every --interval until Ctrl-C.")
    ] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, metavar="SECONDS", help="How often to print with --watch.")
    ] = 1.0,
    check: Annotated[
        str | None,
        typer.Option(
            "--check",
            metavar="DEVICE",
            help="NAME, PID/NAME or socket: exit code 0 if it is well, 1 if not, 3 if nobody serves it.",
        ),
    ] = None,
    available: Annotated[
        bool, typer.Option("--available", help="List the devices that can be served, with their options.")
    ] = False,
    json: Json = False,
) -> int:
    """Show the running devices with their counters.

    Counts are since each device started. Devices of `iolane run`, `serve` and `demo` are found through their
    control sockets, all those of the same user.

    \b
    Examples:
      iolane devices
      iolane devices --watch
      iolane devices --check /run/disk.sock
      iolane devices --available
      iolane devices --json
    """
    if available:
        return _print_available(json)
    if check is not None:
        return _print_health(check, json)
    from iolane.carriers.control import serving

    while True:
        servers = [server for _, server in serving() if server.devices]  # a machine may serve none itself
        if json:
            print_json(servers, indent=0 if watch else 2)
        else:
            if watch and sys.stdout.isatty():
                print("\033[H\033[2J", end="")
            _print_servers(servers)
        if not watch:
            return 0
        time.sleep(interval)


def _print_health(asked: str, json: bool) -> int:
    from iolane.operations.service.health import Verdict, health_of

    health = health_of(asked)
    if json:
        print_json(health)
    elif health.verdict is Verdict.WELL:
        client = "with a client" if health.connected else "without a client"
        print(f"{health.name} is well: process {health.pid} serves {health.socket}, {client}")
    else:
        print(f"{health.name or asked} is {health.verdict}: {health.reason}")
    return {Verdict.WELL: 0, Verdict.ILL: 1, Verdict.ABSENT: 3}[health.verdict]


def _print_servers(servers: list[ServerReport]) -> None:
    if not servers:
        print("no device is served now (see `iolane serve` and `iolane run`)")
    for server in servers:
        print(f"process {server.pid}: {server.command}")
        for device in server.devices:
            _print_device(device)


def _print_device(device: DeviceReport) -> None:
    state = "connected" if device.connected else "waiting for a client"
    print(
        f"  {device.name}  {device.type}, {state}, interrupts {device.interrupt_mode}, trace {device.trace}"
    )
    print(f"    socket {device.endpoint}")
    for title, numbers in (("counters", device.counters), ("statistics", device.statistics)):
        shown = [f"{name} {value}" for name, value in numbers.items() if value]
        if shown:
            print_wrapped(f"{title}: {', '.join(shown)}", indent=4)
    if device.unmodelled:
        print(f"    not modelled, but touched by the guest: {', '.join(device.unmodelled)}")
    if device.accesses:
        counts = [f"{name} {reads}r {writes}w" for name, (reads, writes) in device.accesses.items()]
        print_wrapped(f"accesses while traced: {', '.join(counts)}", indent=4)
    for spin in device.spins:
        print(f"    notice: {spin}")
    for fault in device.faults:
        print(f"    DMA fault: {fault}")
    if device.problem:
        print(f"    problem: {device.problem}")


def _print_available(json: bool) -> int:
    from iolane.devices.registry import available

    found = available()
    if json:
        print_json(found)
        return 0
    print_table(
        ("device", "what it is"), [(device.name, device.problem or device.summary) for device in found]
    )
    for device in found:
        if device.options:
            print(f"\noptions of {device.name}:")
            for option in device.options:
                print(f"  {option}")
    print("\nfor every device: id=NAME, process=own; for one served elsewhere: socket=PATH")
    print("a device of your own: FILE.py:CLASS or MODULE:CLASS, with its constructor's parameters as options")
    return 0
