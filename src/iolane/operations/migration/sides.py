"""What the two sides of a move need of their machines."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from iolane.engines.qemu.migration_progress import Progress
from iolane.engines.qemu.migration_settings import MigrationSettings
from iolane.operations.migration.moved_device import Departed
from iolane.operations.migration.offer import Finding, Offer

OnEnd = Callable[[bool], object]


class IncomingSide(Protocol):
    """The engine's side of a move (`IncomingMigration` is QEMU's)."""

    def start(self, stream: socket.socket) -> None:
        """Begin; the stream is the engine's. Raises IolaneError."""

    def reason(self) -> str:
        """Why it failed."""

    def close(self) -> None:
        """Tell of nothing more."""


class OutgoingSide(IncomingSide, Protocol):
    """The same where the machine leaves (`OutgoingMigration`)."""

    @property
    def stopped_at(self) -> float | None:
        """When the guest stood still for the rest (time.monotonic)."""

    def progress(self) -> Progress:
        """How far it is. Raises IolaneError when the engine is gone."""

    def cancel(self) -> None:
        """Stop it; its end is told of."""


class LeavingMachine(Protocol):
    """A machine that runs here, and is to run elsewhere. Its owner sees to it that nobody else lets it go on
    while it stands still for a move."""

    def offer(self) -> Offer:
        """What the other side is told of it. Raises IolaneError with what can't move."""

    def outgoing(self, settings: MigrationSettings, on_end: OnEnd) -> OutgoingSide:
        """The engine's side, not started yet."""

    def begin(self) -> None:
        """It is about to move: from here on nobody else changes it, or lets it go on."""

    def go_on(self) -> None:
        """It stays: it runs as before, if it ran. Raises IolaneError where the engine is gone."""

    def doubt(self, reason: str) -> None:
        """It stands still, and only the other side knows more."""

    def end(self, place: str) -> None:
        """It runs elsewhere: end it here."""


class ArrivingMachine(Protocol):
    """A machine that was made for a guest from elsewhere, and stands still."""

    def incoming(self, settings: MigrationSettings, on_end: OnEnd) -> IncomingSide:
        """The engine's side, not started yet."""

    def on_lost(self, call: Callable[[], object]) -> None:
        """Call when the engine is gone; the call must not wait."""

    def on_decision(self, decide: Callable[[bool], bool]) -> None:
        """Where its operator decides in doubt: `decide(True)` has it run here, `decide(False)` ends it;
        returned is whether that was open. The call may wait."""

    def take_images(self) -> None:
        """Take the locks of its images, which the source has given back. Raises IolaneError."""

    def run(self) -> None:
        """Let it go, and tell the networks where it is. Raises IolaneError only where it has not gone."""

    def doubt(self, reason: str) -> None:
        """It stands still, and only the source knows more."""

    def bring(self, departed: Sequence[Departed]) -> list[str]:
        """It runs: put in what came beside it; returned is what went wrong."""

    def destroy(self) -> None:
        """End it and give back all it held."""


class MachineMaker(Protocol):
    """What makes machines for guests from elsewhere."""

    def preflight(self, offer: Offer) -> tuple[list[Finding], list[str]]:
        """Reasons to refuse, and what should be known of a machine that may come."""

    def make(self, offer: Offer) -> ArrivingMachine:
        """The machine, started and standing still. Raises IolaneError; nothing is left then."""
