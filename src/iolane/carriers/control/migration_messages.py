"""What is said on a control socket about a machine that goes to another host."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Text = Annotated[str, msgspec.Meta(max_length=4096)]


class MigrateMachine(msgspec.Struct, frozen=True, tag_field="do", tag="migrate", forbid_unknown_fields=True):
    """Move the machine: `MigrationProgress` comes on this connection several times a second, `MigrationEnd`
    last. A connection that is closed earlier cancels it.
    """

    uri: Text
    """Where `iolane receive` waits; an absolute path where it is one."""
    downtime: Annotated[float, msgspec.Meta(gt=0, le=2000)] | None = None
    """Seconds that the guest may stand still at the end."""
    bandwidth: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] = 0
    """Bytes a second at most; 0: as many as go."""
    tls: Text | None = None
    """A directory with certificates."""
    replug: bool = False
    """Unplug what does not move with it, and plug it in there."""
    dry_run: bool = False


class CancelMigration(
    msgspec.Struct, frozen=True, tag_field="do", tag="cancel-migration", forbid_unknown_fields=True
):
    """Have the machine stay; refused when it is too late for that."""


class ResolveMigration(
    msgspec.Struct, frozen=True, tag_field="do", tag="resolve-migration", forbid_unknown_fields=True
):
    """In doubt: ask the other side again and do what follows; `MigrationEnd` comes on this connection."""

    here: bool = False
    """Do not ask: the other side's machine has certainly ended, and this one goes on."""


class MigrationProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far it is. Sizes are bytes, times seconds."""

    seconds: float
    transferred: int
    remaining: int
    total: int
    rate: float
    """Bytes a second that go over."""
    dirty_rate: float
    """Bytes a second that are changed meanwhile."""
    passes: int
    slowed: float = 0.0
    """The share of time that its processors are made to wait."""
    estimate: float | None = None
    """Seconds until it stands still for the last part; None: not in sight."""


class MigrationEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How it went."""

    outcome: Literal["moved", "kept", "in doubt", "refused"]
    reason: str = ""
    remedy: str | None = None
    notes: list[str] = []
    """What the destination said of a machine that it takes."""
    problems: list[str] = []
    """What did not come back as it was."""
    seconds: float = 0.0
    downtime: float = 0.0
    """How long the guest stood still, until the word that it runs there."""
    transferred: int = 0
    passes: int = 0
