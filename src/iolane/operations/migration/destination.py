"""The destination's part of the agreement, without any I/O: what it does about what it hears.

Its machine stands still until `Commit` is heard, and never runs once the destination has said that it does
not. A link that is cut before all of the machine is here ends it; one that is cut afterwards leaves the
destination in doubt, since the source may have said `Commit`: it stands still, and waits to be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from iolane.operations.migration.messages import (
    Abort,
    Arrived,
    Ask,
    Brings,
    Commit,
    FromDestination,
    FromSource,
    Moving,
    NotRunning,
    Running,
)


class DestinationPhase(StrEnum):
    """Where the move stands, seen from the destination."""

    RECEIVING = "receiving"
    ARRIVED = "arrived"
    """All of it is here, and stands still."""
    STARTING = "starting"
    """Commit was heard; the machine is being let go."""
    RUNNING = "running"
    GONE = "gone"
    """It does not run here, and never will."""


OVER = frozenset({DestinationPhase.RUNNING, DestinationPhase.GONE})


class Act(StrEnum):
    """What the destination's owner has to do, in order, before anything else is heard."""

    RUN = "run"
    """Let the machine go, and say how that went by `ran` or `could_not_run`."""
    DESTROY = "destroy"
    """End the machine, which has never run."""


Steps = Sequence[Act | FromDestination]


class DestinationAgreement:
    """One move, seen from the destination, from when its machine waits.

    Attributes:
        phase: where it stands.
        reason: why it is gone, once it is.
        in_doubt: the link was cut when only the source knew where the machine runs.
    """

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.phase = DestinationPhase.RECEIVING
        self.reason = ""
        self.in_doubt = False

    @property
    def over(self) -> bool:
        """Whether it is decided whether the machine runs here."""
        return self.phase in OVER

    def hear(self, message: FromSource) -> Steps:
        """What the source says."""
        match self.phase, message:
            case _, Ask():
                return self._answer()
            case DestinationPhase.RECEIVING, Brings() | Moving():
                return []
            case DestinationPhase.RECEIVING, Abort(reason):
                return self._destroy(f"the source: {reason}")
            case DestinationPhase.RECEIVING, _:
                return self._destroy(f"the source says '{message.__struct_config__.tag}' out of turn")
            case DestinationPhase.ARRIVED, Commit():
                self.phase = DestinationPhase.STARTING
                return [Act.RUN]
            case DestinationPhase.ARRIVED, Abort(reason):
                return self._destroy(f"the source: {reason}")
            case ((DestinationPhase.RUNNING | DestinationPhase.GONE), Commit()):
                return self._answer()
            case _:
                return []

    def _answer(self) -> Steps:
        """As it is now. While the machine is being let go, the answer follows by itself."""
        self.in_doubt = False
        match self.phase:
            case DestinationPhase.ARRIVED:
                return [Arrived()]
            case DestinationPhase.RUNNING:
                return [Running()]
            case DestinationPhase.GONE:
                return [NotRunning(self.reason[:4000])]
            case DestinationPhase.RECEIVING:
                return self._destroy("the source has lost the link")
            case DestinationPhase.STARTING:
                return []

    def arrived(self) -> Steps:
        """The engine has all of the machine, which stands still."""
        if self.phase is not DestinationPhase.RECEIVING:
            return []
        self.phase = DestinationPhase.ARRIVED
        return [Arrived()]

    def failed(self, reason: str) -> Steps:
        """The machine could not be taken, or has ended without having run."""
        if self.phase in (DestinationPhase.RECEIVING, DestinationPhase.ARRIVED):
            return self._destroy(reason)
        return []

    def ran(self) -> Steps:
        """The machine was let go: it runs, or ran until it ended."""
        self.phase = DestinationPhase.RUNNING
        return [Running()]

    def could_not_run(self, reason: str) -> Steps:
        """The machine was not let go, for sure."""
        return self._destroy(reason)

    def link_lost(self, reason: str) -> Steps:
        """The link is cut."""
        if self.phase is DestinationPhase.RECEIVING:
            return self._destroy(reason)
        self.in_doubt = self.phase is DestinationPhase.ARRIVED
        return []

    def source_ended(self) -> Steps:
        """The operator knows that the source's machine has ended."""
        if self.phase is not DestinationPhase.ARRIVED:
            return []
        self.phase = DestinationPhase.STARTING
        return [Act.RUN]

    def end(self, reason: str) -> Steps:
        """The operator ends it here."""
        return self.failed(reason)

    def _destroy(self, reason: str) -> Steps:
        self.phase, self.reason, self.in_doubt = DestinationPhase.GONE, reason, False
        return [Act.DESTROY, NotRunning(reason[:4000])]
