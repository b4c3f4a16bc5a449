"""Talking to a running machine about going to another host."""

from __future__ import annotations

from collections.abc import Callable

from iolane.carriers.control.client import ControlClient
from iolane.carriers.control.messages import Done
from iolane.carriers.control.migration_messages import (
    CancelMigration,
    MigrateMachine,
    MigrationEnd,
    MigrationProgress,
    ResolveMigration,
)
from iolane.errors import IolaneError


class MigrationClient(ControlClient):
    """One connection to the process of one machine."""

    def migrate(
        self, request: MigrateMachine, on_progress: Callable[[MigrationProgress], object]
    ) -> MigrationEnd:
        """Move it; returns when that is decided, or in doubt. A connection that is closed earlier cancels."""
        return self._follow(request, on_progress)

    def resolve(self, *, here: bool = False) -> MigrationEnd:
        """Settle what is in doubt."""
        return self._follow(ResolveMigration(here), lambda progress: None)

    def cancel(self) -> None:
        """Have it stay."""
        self._ask(CancelMigration(), Done)

    def _follow(
        self, request: MigrateMachine | ResolveMigration, on_progress: Callable[[MigrationProgress], object]
    ) -> MigrationEnd:
        self._ask(request, Done)
        self._socket.settimeout(None)
        while line := self._line():
            if b'"outcome"' in line:
                return self._decode(line, MigrationEnd)
            on_progress(self._decode(line, MigrationProgress))
        raise IolaneError(
            f"{self.path}: the machine's process went away while it migrated",
            remedy="where it had arrived, it stands still at the destination: iolane ps there",
        )
