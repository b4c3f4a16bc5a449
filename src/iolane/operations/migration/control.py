"""A machine's moves as its control socket sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from iolane.carriers.control.migration_messages import (
    MigrateMachine,
    MigrationEnd,
    MigrationProgress,
    ResolveMigration,
)
from iolane.engines.qemu.migration_progress import Progress
from iolane.errors import IolaneError
from iolane.operations.machine.machine import Machine
from iolane.operations.migration.move import Moved
from iolane.operations.migration.source import SourcePhase

OUTCOMES: dict[SourcePhase, Literal["moved", "kept", "in doubt"]] = {
    SourcePhase.MOVED: "moved",
    SourcePhase.KEPT: "kept",
}

Take = Callable[[msgspec.Struct | None], None]


def follow_migration(
    machine: Machine, request: MigrateMachine | ResolveMigration, take: Take
) -> Callable[[], None]:
    """Begin what is asked for; `take` gets how it goes. Returns the call for when nobody listens any more."""

    def begin() -> Moved:
        if isinstance(request, ResolveMigration):
            return machine.moves.resolve(here=request.here)
        return machine.migrate(
            request.uri,
            downtime=request.downtime,
            bandwidth=request.bandwidth,
            tls=None if request.tls is None else Path(request.tls),
            replug=request.replug,
            dry_run=request.dry_run,
            on_progress=lambda progress: take(shown(progress)),
        )

    def end(outcome: Moved | IolaneError | None) -> None:
        take(outcome if outcome is None else ended(outcome))

    return machine.moves.follow(begin, end)


def shown(progress: Progress) -> MigrationProgress:
    """How far it is, as it is told."""
    return MigrationProgress(
        seconds=progress.seconds,
        transferred=progress.transferred,
        remaining=progress.remaining,
        total=progress.total,
        rate=progress.rate,
        dirty_rate=progress.dirty_rate,
        passes=progress.passes,
        slowed=progress.slowed,
        estimate=progress.estimate,
    )


def ended(outcome: Moved | IolaneError) -> MigrationEnd:
    """How it went, as it is told."""
    if isinstance(outcome, IolaneError):
        return MigrationEnd(outcome="refused", reason=outcome.message, remedy=outcome.remedy)
    return MigrationEnd(
        outcome=OUTCOMES.get(outcome.phase, "in doubt"),
        reason=outcome.reason,
        notes=outcome.notes,
        problems=outcome.problems,
        seconds=outcome.seconds,
        downtime=outcome.downtime,
        transferred=outcome.transferred,
        passes=outcome.passes,
    )
