"""`iolane migrate MACHINE URI`: moves a running machine to another host."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iolane.cli.attach import Connect
from iolane.cli.machine_name import MachineArgument
from iolane.cli.move_domain import move_domain
from iolane.cli.output import Json, print_json, progress, quantity

if TYPE_CHECKING:
    from iolane.carriers.control.migration_messages import MigrationEnd, MigrationProgress

STAYS, IN_DOUBT = 1, 3
"""Exit codes; 0: it has moved, or would be taken."""
SECONDS_A_LINE = 2.0


def migrate(
    machine: MachineArgument,
    uri: Annotated[
        str | None,
        typer.Argument(
            metavar="URI", help="unix:PATH or tcp:HOST:PORT, where `iolane receive` waits; or libvirt's."
        ),
    ] = None,
    downtime: Annotated[
        int,
        typer.Option(
            "--downtime", min=1, max=2_000_000, metavar="MS", help="How long it may stand still at the end."
        ),
    ] = 300,
    bandwidth: Annotated[
        int, typer.Option("--bandwidth", min=0, metavar="MIB", help="MiB a second at most; 0: no limit.")
    ] = 0,
    tls: Annotated[
        Path | None,
        typer.Option("--tls", metavar="DIR", help="ca-cert.pem, client-cert.pem, client-key.pem: encrypt."),
    ] = None,
    replug: Annotated[
        bool, typer.Option("--replug", help="Unplug what can't move, and plug it in there with its state.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only ask whether it could.")] = False,
    connect: Connect = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Stop the migration that goes on.")] = False,
    resolve: Annotated[
        bool, typer.Option("--resolve", help="In doubt: ask the other side again, and do what follows.")
    ] = False,
    here: Annotated[
        bool,
        typer.Option("--here", help="With --resolve: the other side has certainly ended; run it here."),
    ] = False,
    json: Json = False,
) -> int:
    """Move a running machine, with its memory and its devices by vhost-user, to where `iolane receive` waits.

    The guest goes on here until all of it is there. When anything fails before that, it stays here as it was.
    Where the link is cut at the very moment in which one side hands over to the other, both stand still until
    --resolve has asked again. Ctrl-C cancels.

    With a URI of libvirt's, MACHINE is a domain (--connect), which libvirt moves with its devices.

    \b
    Examples:
      iolane migrate web unix:/run/there.sock
      iolane migrate web tcp:host2:4444 --tls /etc/pki/iolane --downtime 100
      iolane migrate web tcp:host2:4444 --dry-run
      iolane migrate web qemu+ssh://host2/system
      iolane migrate web --cancel
      iolane migrate web --resolve
    """
    from iolane.carriers.control import find_machine
    from iolane.carriers.control.migration_client import MigrationClient
    from iolane.carriers.control.migration_messages import MigrateMachine
    from iolane.operations.libvirt.migration import is_libvirt_uri
    from iolane.operations.migration.uri import parse_place

    if sum((uri is not None, cancel, resolve)) != 1:
        raise typer.BadParameter("one of: URI, --cancel, --resolve")
    if uri is not None and is_libvirt_uri(uri):
        if tls is not None or replug:
            raise typer.BadParameter("--tls and --replug are not for domains of libvirt's")
        limit = downtime / 1000
        return move_domain(machine, uri, connect, limit, bandwidth, dry_run=dry_run, json=json)
    if connect is not None:
        raise typer.BadParameter("--connect goes with a URI of libvirt's")
    path, _ = find_machine(machine)
    with MigrationClient(path) as client:
        if cancel:
            client.cancel()
            return 0
        if resolve:
            return _end(machine, client.resolve(here=here), json=json, dry_run=False)
        assert uri is not None
        request = MigrateMachine(
            str(parse_place(uri)),
            downtime=downtime / 1000,
            bandwidth=bandwidth << 20,
            tls=None if tls is None else str(tls.absolute()),
            replug=replug,
            dry_run=dry_run,
        )
        show = _Shown(json=json)
        try:
            end = client.migrate(request, show)
        finally:
            show.end()
    return _end(machine, end, json=json, dry_run=dry_run)


class _Shown:
    """On a terminal one line that changes, else a line every few seconds; with --json an object each time."""

    def __init__(self, *, json: bool) -> None:
        self._json = json
        self._line = sys.stderr.isatty() and not json
        self._next = 0.0

    def __call__(self, told: MigrationProgress) -> None:
        if self._json:
            print_json(told, indent=0)
        elif self._line:
            print(f"\r\x1b[K{_words(told)}", end="", file=sys.stderr, flush=True)
        elif told.seconds >= self._next:
            self._next = told.seconds + SECONDS_A_LINE
            progress(_words(told))

    def end(self) -> None:
        """The line is left as it is."""
        if self._line:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _words(told: MigrationProgress) -> str:
    left = f"{quantity(told.remaining)} of {quantity(told.total)} left at {quantity(told.rate)}/s"
    if told.passes > 1:
        left += f", {quantity(told.dirty_rate)}/s change, pass {told.passes}"
    if told.slowed:
        left += f", slowed by {told.slowed:.0%}"
    end = "no end in sight" if told.estimate is None else f"about {told.estimate:.0f} s to go"
    return f"{left}, {end}"


def _end(machine: str, end: MigrationEnd, *, json: bool, dry_run: bool) -> int:
    accepted = dry_run and end.outcome == "kept" and end.reason == "it would be taken"
    if json:
        print_json(end, indent=0)
    else:
        _print(machine, end, accepted=accepted)
    if accepted or end.outcome == "moved":
        return 0
    return IN_DOUBT if end.outcome == "in doubt" else STAYS


def _print(machine: str, end: MigrationEnd, *, accepted: bool) -> None:
    for note in end.notes:
        progress(f"note: {note}")
    if accepted:
        print(f"{machine} would be taken")
    elif end.outcome == "moved" and end.transferred:
        print(
            f"{machine} has moved: {end.seconds:.1f} s, {quantity(end.transferred)} in {end.passes} passes, "
            f"stood still for {end.downtime * 1000:.0f} ms"
        )
    elif end.outcome == "moved":
        print(f"{machine} has moved{f': {end.reason}' if end.reason else ''}")
    elif end.outcome == "in doubt":
        progress(f"iolane: whether {machine} has moved is in doubt: {end.reason}")
        progress(f"it stands still here; ask the other side again: iolane migrate --resolve {machine}")
    else:
        progress(f"iolane: {machine} stays here: {end.reason}{f' ({end.remedy})' if end.remedy else ''}")
    for problem in end.problems:
        progress(f"iolane: {problem}")
