"""`iolane migrate DOMAIN qemu+ssh://HOST/system`: a domain of libvirt's with iolane's devices."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from iolane.cli.output import print_json, progress, quantity

if TYPE_CHECKING:
    from iolane.operations.libvirt.migration import DomainProgress

SECONDS_A_LINE = 2.0


def move_domain(
    domain: str,
    destination: str,
    connect: str | None,
    downtime: float,
    bandwidth: int,
    *,
    dry_run: bool,
    json: bool,
) -> int:
    """Move it, and say how that went."""
    from iolane.operations.libvirt.migration import MigrationRequest, migrate_domain

    request = MigrationRequest(
        domain=domain,
        destination=destination,
        uri=connect,
        downtime=downtime,
        bandwidth=bandwidth or None,
        check_only=dry_run,
    )
    moved = migrate_domain(request, _Shown(json=json))
    if moved is None:
        print_json({"domain": domain, "would_move": True}) if json else print(f"{domain} would move")
    elif json:
        print_json(moved)
    else:
        went = f"{quantity(moved.transferred)} of memory in {moved.seconds:.1f} s"
        print(
            f"{domain} runs at {destination} now: {went}, it stood still for {moved.downtime * 1000:.0f} ms"
        )
    return 0


class _Shown:
    """A line every few seconds; with --json an object each time."""

    def __init__(self, *, json: bool) -> None:
        self._json = json
        self._next = 0.0

    def __call__(self, told: DomainProgress) -> None:
        if self._json:
            print_json(told, indent=0)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + SECONDS_A_LINE
            left = "" if told.estimate is None else f", about {told.estimate:.0f} s"
            progress(f"{quantity(told.remaining)} of {quantity(told.total)} are left{left}")
