"""The moves of one machine: one at a time, watched, cancelled and resolved from other threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

from iolane.engines.qemu.credentials import TlsCredentials
from iolane.engines.qemu.migration_progress import Progress
from iolane.engines.qemu.migration_settings import DOWNTIME, MigrationSettings
from iolane.errors import IolaneError
from iolane.operations.machine.machine import Machine
from iolane.operations.machine.move_options import MoveOptions
from iolane.operations.migration.leaving import LeavingGuest
from iolane.operations.migration.move import Move, Moved
from iolane.operations.migration.moved_device import MovedDevices
from iolane.operations.migration.source import SourcePhase
from iolane.operations.migration.staying import staying
from iolane.operations.migration.uri import parse_place

TELLING = 5.0
"""Seconds for whoever follows a move to take the last word of it."""


class Moves:
    """Made by its machine.

    Attributes:
        decide_arrival: where the machine came from elsewhere and that is in doubt: have it run here, or
        (False)
            end it. Returns whether that was open.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._lock = threading.Lock()
        self._move: Move | None = None
        self._busy = False
        self._thread: threading.Thread | None = None
        self._told = threading.Event()
        self.decide_arrival: Callable[[bool], bool] | None = None

    def migrate(self, uri: str, options: MoveOptions, on_progress: Callable[[Progress], object]) -> Moved:
        """See `Machine.migrate`."""
        place = parse_place(uri)
        downtime = DOWNTIME if options.downtime is None else options.downtime
        beside = staying(self._machine) if options.replug else MovedDevices([])
        move = Move(
            LeavingGuest(self._machine, beside.names),
            place,
            MigrationSettings(downtime=downtime, bandwidth=options.bandwidth),
            credentials=None if options.tls is None else TlsCredentials(options.tls),
            beside=beside,
            dry_run=options.dry_run,
            on_progress=on_progress,
        )
        self._claim(move)
        try:
            return move.run()
        finally:
            self._release()

    def cancel(self) -> None:
        """Have the machine stay. Raises IolaneError when it does not move, or when that is too late."""
        move = self._move
        if move is None:
            raise IolaneError(f"machine {self._machine.name} does not migrate")
        if not move.cancel("cancelled here"):
            raise IolaneError(
                f"it is too late to cancel: machine {self._machine.name} is {move.phase.value}",
                remedy=f"iolane migrate --resolve {self._machine.name} where it is in doubt",
            )

    def resolve(self, *, here: bool = False) -> Moved:
        """In doubt: ask the other side again, and do what follows.

        Args:
            here: do not ask: the operator knows that the other side's has ended, and that it has not run
            since.

        Raises:
            IolaneError: nothing is in doubt, or the other side can't be asked.
        """
        move = self._move
        if move is None or move.phase is not SourcePhase.IN_DOUBT:
            return self._resolve_arrival(here)
        with self._lock:
            if self._busy:
                raise IolaneError("the other side is being asked")
            self._busy = True
        try:
            moved = move.give_up() if here else move.resolve()
            if move.phase is not SourcePhase.IN_DOUBT:
                self._move = None
            return moved
        finally:
            self._busy = False

    def _resolve_arrival(self, here: bool) -> Moved:
        name, decide = self._machine.name, self.decide_arrival
        if decide is None:
            raise IolaneError(f"nothing about machine {name} is in doubt")
        if not here:
            raise IolaneError(
                f"machine {name} has arrived here and stands still; the source knows whether it is to run",
                remedy=(
                    f"there: iolane migrate --resolve {name}; where the source has certainly ended, here: "
                    f"iolane migrate --resolve {name} --here"
                ),
            )
        if not decide(True):
            raise IolaneError(f"nothing about machine {name} is in doubt any more")
        return Moved(phase=SourcePhase.MOVED, reason="it runs here, as its operator decided")

    def follow(
        self, begin: Callable[[], Moved], take: Callable[[Moved | IolaneError | None], object]
    ) -> Callable[[], None]:
        """Do something of the above in a thread, which the machine's end waits for. `take` gets how it went,
        then None. Returns a call that has it cancelled where that is still possible.
        """

        told = threading.Event()

        def work() -> None:
            try:
                take(begin())
            except IolaneError as error:
                take(error)
            finally:
                take(None)

        thread = threading.Thread(target=work, name="migration", daemon=True)
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise IolaneError(f"machine {self._machine.name} migrates already")
            self._thread, self._told = thread, told
        thread.start()

        def abandon() -> None:
            told.set()
            if (move := self._move) is not None and thread.is_alive():
                move.cancel("whoever asked for it has gone")

        return abandon

    def close(self) -> None:
        """The machine ends: nothing moves any more, and who asked for a move has been told how it went."""
        thread = self._thread
        if (move := self._move) is not None:
            move.cancel("the machine was ended")
        if thread is not None and thread is not threading.current_thread():
            thread.join()
            self._told.wait(TELLING)

    def _claim(self, move: Move) -> None:
        with self._lock:
            if self._busy or (self._move is not None and self._move.phase is SourcePhase.IN_DOUBT):
                raise IolaneError(f"machine {self._machine.name} migrates already")
            self._busy, self._move = True, move

    def _release(self) -> None:
        with self._lock:
            self._busy = False
            if self._move is not None and self._move.phase is not SourcePhase.IN_DOUBT:
                self._move = None
