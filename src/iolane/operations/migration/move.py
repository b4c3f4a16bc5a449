"""A move as the source does it: the agreement, with its link, its engine and its limits of patience."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from iolane._version import __version__
from iolane.engines.qemu.credentials import TlsCredentials
from iolane.engines.qemu.migration_progress import Progress
from iolane.engines.qemu.migration_settings import MigrationSettings
from iolane.engines.qemu.patience import patient
from iolane.errors import IolaneError
from iolane.operations.migration.channel import Channel, stream, talk
from iolane.operations.migration.messages import (
    PROTOCOL,
    Accepted,
    Brings,
    FromDestination,
    Hello,
    Moving,
)
from iolane.operations.migration.moved_device import MovedDevices
from iolane.operations.migration.sides import LeavingMachine, OutgoingSide
from iolane.operations.migration.source import Act, SourceAgreement, SourcePhase, Steps
from iolane.operations.migration.uri import Place

INTERVAL = 0.25
"""Seconds between two looks at how far it is."""
SIGN_OF_LIFE = 1.0
"""Seconds between two messages that say so."""
LIMITS = {
    SourcePhase.ASKING: 60.0,
    SourcePhase.PREPARING: 600.0,  # a kernel may have to be fetched
    SourcePhase.COMMITTING: 60.0,
}
"""Seconds for the other side to answer."""
STALLED = 30.0
"""Seconds in which nothing moves: the link is taken for cut."""


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """How a move went. Times are seconds, sizes bytes."""

    phase: SourcePhase
    reason: str = ""
    """Why the machine stays, or what is in doubt."""
    notes: list[str] = []
    """What the destination said about a machine that it takes."""
    seconds: float = 0.0
    downtime: float = 0.0
    """How long the guest stood still: from its last instruction here to the word that it runs there."""
    engine_downtime: float = 0.0
    """The part of it that QEMU counts."""
    transferred: int = 0
    passes: int = 0
    problems: list[str] = []
    """What did not come back as it was, where the machine stays."""


@dataclass
class Patience:
    """How long is long."""

    limits: dict[SourcePhase, float] = field(default_factory=lambda: dict(LIMITS))
    stalled: float = STALLED

    def __post_init__(self) -> None:
        self.limits = {phase: patient(limit) for phase, limit in self.limits.items()}
        self.stalled = patient(self.stalled)


class Move:
    """One machine, one destination. `run` is called once; `cancel` from any thread.

    Args:
        machine: what moves.
        place: where to.
        settings: what the engine is told.
        beside: devices that do not move with it.
        dry_run: only ask.
        on_progress: gets how far it is, several times a second.
    """

    def __init__(
        self,
        machine: LeavingMachine,
        place: Place,
        settings: MigrationSettings | None = None,
        *,
        credentials: TlsCredentials | None = None,
        beside: MovedDevices | None = None,
        dry_run: bool = False,
        on_progress: Callable[[Progress], object] = lambda progress: None,
        patience: Patience | None = None,
    ) -> None:
        self.place = place
        self.identity = secrets.token_hex(16)
        self._machine = machine
        given = settings or MigrationSettings()
        host = place.server_name if credentials else ""
        self._settings = dataclasses.replace(given, credentials=credentials, host=host)
        self._credentials = credentials
        self._beside = beside or MovedDevices([])
        self._dry_run = dry_run
        self._on_progress = on_progress
        self._patience = patience or Patience()
        self._agreement = SourceAgreement(self.identity, dry_run=dry_run)
        self._inbox: queue.SimpleQueue[Callable[[], Steps]] = queue.SimpleQueue()
        self._channel: Channel[FromDestination] | None = None
        self._outgoing: OutgoingSide | None = None
        self._transfer_over = threading.Event()
        self._complete = self._linked = False
        self._notes: list[str] = []
        self._problems: list[str] = []
        self._started = self._spoke = self._moved_last = self._phase_since = 0.0
        self._progress = Progress()
        self._downtime = 0.0

    @property
    def phase(self) -> SourcePhase:
        """Where it stands."""
        return self._agreement.phase

    def cancel(self, reason: str = "cancelled") -> bool:
        """Have the machine stay; whether that is still possible."""
        if self._agreement.decided:
            return False
        self._inbox.put(lambda: self._agreement.cancel(reason))
        return True

    def run(self) -> Moved:
        """Do it; returns when it is decided where the machine runs, or when that is in doubt.

        Raises:
            IolaneError: it could not even begin; nothing has been changed.
        """
        self._started = time.monotonic()
        self._machine.begin()
        try:
            self._beside.check()
            offer = self._machine.offer()
            self._connect()
            hello = Hello(
                protocol=PROTOCOL, version=__version__, id=self.identity, offer=offer, dry_run=self._dry_run
            )
            self._say(hello)
            self._follow()
        except BaseException:
            self._interrupt()
            raise
        finally:
            self._disconnect()
        return self._outcome()

    def _interrupt(self) -> None:
        """Who called is interrupted: the machine stays, unless it is too late for that."""
        self._do(self._agreement.cancel("interrupted"))
        if not self._agreement.over:
            self._lose_link("interrupted")
            self._machine.doubt(self._agreement.reason)

    def resolve(self) -> Moved:
        """In doubt: ask the other side again, and do what follows.

        Raises:
            IolaneError: it can't be reached; everything is as before.
        """
        if self.phase is not SourcePhase.IN_DOUBT:
            raise IolaneError("nothing is in doubt")
        self._connect()
        try:
            self._do(self._agreement.link_again())
            self._follow()
        finally:
            self._disconnect()
        return self._outcome()

    def give_up(self) -> Moved:
        """In doubt: the machine runs here again, since somebody knows that it has never run there."""
        self._do(self._agreement.destination_ended())
        return self._outcome()

    # -- the loop -------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Until it is decided, or in doubt without a link."""
        phase = self.phase
        self._phase_since = time.monotonic()
        while not self._agreement.over and (self._linked or self.phase is not SourcePhase.IN_DOUBT):
            try:
                steps = self._inbox.get(timeout=INTERVAL)()
            except queue.Empty:
                steps = self._look()
            self._do(steps)
            if self.phase is not phase:
                phase, self._phase_since = self.phase, time.monotonic()
        if self.phase is SourcePhase.IN_DOUBT:
            self._machine.doubt(self._agreement.reason)

    def _waited(self) -> float:
        return time.monotonic() - self._phase_since

    def _limit(self) -> float:
        return self._patience.limits.get(self.phase, self._patience.limits[SourcePhase.COMMITTING])

    def _look(self) -> Steps:
        """Nothing was heard for a moment."""
        if self.phase is SourcePhase.MOVING and not self._complete:
            return self._look_at_transfer()
        if self._waited() > self._limit():
            return self._lose_link(f"the other side has not answered for {self._limit():g} s")
        return []

    def _lose_link(self, reason: str) -> Steps:
        self._linked = False
        return self._agreement.link_lost(reason)

    def _look_at_transfer(self) -> Steps:
        now = time.monotonic()
        if self._outgoing is not None:
            try:
                progress = self._outgoing.progress()
            except IolaneError as error:
                return self._agreement.transfer_ended(complete=False, reason=error.message)
            if progress.transferred != self._progress.transferred:
                self._moved_last = now
            self._progress = progress
            self._on_progress(progress)
            if now - self._spoke >= SIGN_OF_LIFE:
                self._spoke = now
                self._say(Moving(progress.transferred, progress.remaining, progress.total, progress.estimate))
        if now - self._moved_last > self._patience.stalled:
            return self._lose_link(f"nothing went over the link for {self._patience.stalled:g} s")
        return []

    # -- what is heard --------------------------------------------------------------------------------------

    def _connect(self) -> None:
        channel = talk(self.place, self._credentials, patient(20.0))
        self._channel, self._linked = channel, True

        def heard(message: FromDestination) -> None:
            if isinstance(message, Accepted):
                self._notes = message.notes
            self._inbox.put(lambda: self._agreement.hear(message) if channel is self._channel else [])

        def lost(reason: str) -> None:
            self._inbox.put(lambda: self._lose_link(reason) if channel is self._channel else [])

        channel.start(heard, lost)

    def _disconnect(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _transfer_ended(self, complete: bool) -> None:
        """In the engine's thread."""
        self._transfer_over.set()
        self._inbox.put(lambda: self._hear_transfer(complete))

    def _hear_transfer(self, complete: bool) -> Steps:
        self._complete = complete
        self._phase_since = time.monotonic()
        if self._outgoing is None:
            return []
        with contextlib.suppress(IolaneError):
            self._progress = self._outgoing.progress()
        reason = "" if complete else f"QEMU: {self._outgoing.reason()}"
        return self._agreement.transfer_ended(complete=complete, reason=reason)

    # -- what is done ---------------------------------------------------------------------------------------

    def _do(self, steps: Steps) -> None:
        for step in steps:
            match step:
                case Act.TRANSFER:
                    self._transfer()
                case Act.STOP_TRANSFER:
                    self._stop_transfer()
                case Act.GO_ON:
                    self._go_on()
                case Act.END:
                    self._end()
                case _:
                    self._say(step)

    def _say(self, message: msgspec.Struct) -> None:
        if self._channel is not None:
            self._channel.send(message)

    def _transfer(self) -> None:
        """What goes wrong here is heard as the transfer's end."""
        try:
            departed = self._beside.before()
            if departed:
                self._say(Brings(departed))
            connection = stream(self.place, self._agreement.token, patient(20.0))
            self._moved_last = time.monotonic()
            outgoing = self._machine.outgoing(self._settings, self._transfer_ended)
            outgoing.start(connection)
            self._outgoing = outgoing
        except IolaneError as error:
            reason = str(error)
            self._transfer_over.set()
            self._inbox.put(lambda: self._agreement.transfer_ended(complete=False, reason=reason))

    def _stop_transfer(self) -> None:
        if self._outgoing is None:
            return
        with contextlib.suppress(IolaneError):
            self._outgoing.cancel()
        self._transfer_over.wait(patient(20.0))

    def _go_on(self) -> None:
        self._close_outgoing()
        try:
            self._machine.go_on()
        except IolaneError as error:
            self._problems.append(str(error))
        self._problems += [str(each) for each in self._beside.rollback()]

    def _end(self) -> None:
        if self._outgoing is not None and self._outgoing.stopped_at is not None:
            self._downtime = time.monotonic() - self._outgoing.stopped_at
        self._close_outgoing()
        self._machine.end(str(self.place))

    def _close_outgoing(self) -> None:
        if self._outgoing is not None:
            self._outgoing.close()

    def _outcome(self) -> Moved:
        return Moved(
            phase=self.phase,
            reason=self._agreement.reason,
            notes=self._notes,
            seconds=time.monotonic() - self._started,
            downtime=self._downtime,
            engine_downtime=self._progress.downtime,
            transferred=self._progress.transferred,
            passes=self._progress.passes,
            problems=self._problems,
        )
