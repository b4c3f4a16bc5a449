"""The source's part of the agreement, without any I/O: what it does about what it hears.

Its machine may run until all of it is at the destination and `Commit` is said. From then on it runs again
only when the destination has said that it does not run there and never will. A link that is cut in between
leaves the source in doubt: it stands still, and asks on another link.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from iolane.operations.migration.messages import (
    Abort,
    Accepted,
    Arrived,
    Ask,
    Commit,
    FromDestination,
    FromSource,
    NotRunning,
    Prepare,
    Ready,
    Refused,
    Running,
)


class SourcePhase(StrEnum):
    """Where the move stands, seen from the source."""

    ASKING = "asking"
    """May it come?"""
    PREPARING = "preparing"
    """The destination makes a machine."""
    MOVING = "moving"
    COMMITTING = "committing"
    """It stands still here, and is to run there."""
    IN_DOUBT = "in doubt"
    """The same, but the link is cut."""
    MOVED = "moved"
    KEPT = "kept"
    """It stays here."""


RUNS_HERE = frozenset({SourcePhase.ASKING, SourcePhase.PREPARING, SourcePhase.MOVING, SourcePhase.KEPT})
"""When the source's machine may run."""
OVER = frozenset({SourcePhase.MOVED, SourcePhase.KEPT})


class Act(StrEnum):
    """What the source's owner has to do. They are done in order, before anything else is heard."""

    TRANSFER = "transfer"
    """Have the engine send the machine."""
    STOP_TRANSFER = "stop transfer"
    """Have it stop that, and wait until it has."""
    GO_ON = "go on"
    """The machine runs here, as before."""
    END = "end"
    """The machine ends here: it runs elsewhere."""


Steps = Sequence[Act | FromSource]
"""What to do and to say. What is said to a link that is cut is lost, which is no mistake."""


class SourceAgreement:
    """One move, seen from the source.

    Attributes:
        phase: where it stands.
        reason: why it stays here, once that is decided.
        dry_run: it only asks.
        token: what the stream shows.
    """

    def __init__(self, identity: str, *, dry_run: bool = False) -> None:
        self.identity = identity
        self.dry_run = dry_run
        self.phase = SourcePhase.ASKING
        self.reason = ""
        self.token = ""
        self._left = False
        self._arrived = False

    @property
    def over(self) -> bool:
        """Whether it is decided where the machine runs."""
        return self.phase in OVER

    @property
    def decided(self) -> bool:
        """Whether it is out of this side's hands: it can't be cancelled any more."""
        return self.phase not in RUNS_HERE or self.over

    def hear(self, message: FromDestination) -> Steps:
        """What the destination says. What it may not say now ends the move, where that is safe."""
        match self.phase, message:
            case SourcePhase.ASKING, Accepted():
                if self.dry_run:
                    return self._keep("it would be taken")
                self.phase = SourcePhase.PREPARING
                return [Prepare()]
            case SourcePhase.ASKING | SourcePhase.PREPARING, Refused(findings):
                return self._keep("; ".join(str(finding) for finding in findings))
            case SourcePhase.PREPARING, Ready(token):
                self.phase, self.token = SourcePhase.MOVING, token
                return [Act.TRANSFER]
            case SourcePhase.MOVING, Arrived():
                self._arrived = True
                return self._commit_if_all()
            case SourcePhase.COMMITTING | SourcePhase.IN_DOUBT, _:
                return self._hear_the_end(message)
            case SourcePhase.MOVED | SourcePhase.KEPT, _:
                return []
            case _, NotRunning(reason):
                return self._keep(f"the destination: {reason}")
            case _:
                return self._keep(f"the destination says '{message.__struct_config__.tag}' out of turn")

    def _hear_the_end(self, message: FromDestination) -> Steps:
        match message:
            case Running():
                self.phase = SourcePhase.MOVED
                return [Act.END]
            case NotRunning(reason):
                return self._keep(f"the destination: {reason}")
            case Arrived():  # asked again: it has not heard of Commit
                self.phase = SourcePhase.COMMITTING
                return [Commit()]
            case _:
                return []

    def transfer_ended(self, *, complete: bool, reason: str = "") -> Steps:
        """The engine has sent all of the machine, which stands still now; or it failed, and the machine goes
        on.
        """
        if self.phase is not SourcePhase.MOVING:
            return []
        if not complete:
            return self._keep(reason)
        self._left = True
        return self._commit_if_all()

    def _commit_if_all(self) -> Steps:
        if not (self._left and self._arrived):
            return []
        self.phase = SourcePhase.COMMITTING
        return [Commit()]

    def link_lost(self, reason: str) -> Steps:
        """The link is cut, or nothing came over it for too long."""
        if self.phase in (SourcePhase.COMMITTING, SourcePhase.IN_DOUBT):
            self.phase = SourcePhase.IN_DOUBT
            self.reason = reason
            return []
        return [] if self.over else self._keep(reason)

    def cancel(self, reason: str) -> Steps:
        """Somebody here wants it to stay; too late once Commit is said."""
        return [] if self.decided else self._keep(reason)

    def link_again(self) -> Steps:
        """There is a new link to the destination."""
        return [Ask(self.identity)] if self.phase is SourcePhase.IN_DOUBT else []

    def destination_ended(self) -> Steps:
        """The operator knows that the destination's machine has ended, without ever having run."""
        return self._keep("the destination has ended") if self.phase is SourcePhase.IN_DOUBT else []

    def _keep(self, reason: str) -> Steps:
        moving = self.phase is SourcePhase.MOVING
        self.phase, self.reason = SourcePhase.KEPT, reason
        return [*([Act.STOP_TRANSFER] if moving else []), Act.GO_ON, Abort(reason[:4000])]
