"""A guest moves from one running machine to another (QEMU's docs/devel/migration): each side as an object.

The other machine is started with `incoming=True` and the same hardware, and stays paused: whoever has both
sides in view says which of them goes on. QEMU's stream is a connected socket that the caller made and QEMU
takes over. Devices carried by vhost-user come along when both sides' servers reach the same back end: QEMU
hands over rings and their indexes, the guest's memory holds the rest, and the servers mark in a log what they
write there meanwhile.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any

import msgspec

from iolane.engines.qemu.migration_progress import ENDED, Progress, progress
from iolane.engines.qemu.migration_settings import MigrationSettings
from iolane.engines.qemu.patience import patient
from iolane.engines.qemu.qmp import Event, Qmp, QmpError
from iolane.errors import IolaneError

STREAM = "migration"
"""What the stream's descriptor is called in QEMU."""
STREAM_BUFFER = 4 << 20
"""Bytes on their way between two QEMUs of one host; the kernel may allow fewer. With few the sides take
turns, and a destination looks at all of its devices' descriptors each time before it waits for more."""


class Migration(msgspec.Struct, frozen=True):
    """How it went."""

    seconds: float
    """Until the guest ran at the destination."""
    downtime: float
    """Seconds in which the guest stood still, as QEMU counts them: until it was ready to go on."""
    transferred: int
    """Bytes of memory that went over, repetitions included."""
    passes: int
    """How often memory was gone through: more than one where the guest or a device wrote to it meanwhile."""


def _widen(stream: socket.socket) -> None:
    """TCP finds its buffers by itself."""
    if stream.family == socket.AF_UNIX:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, STREAM_BUFFER)


class MigrationSide:
    """What both sides have: an end that is told of once, and its reason.

    Args:
        qmp: the machine's.
        on_end: called once in QMP's thread, which it must not hold up, with whether all of the guest is over
            there; also when QEMU goes away.
    """

    outgoing: bool
    stopped_at: float | None = None
    """When the guest stood still for the rest (time.monotonic); None while it runs."""

    def __init__(self, qmp: Qmp, settings: MigrationSettings, on_end: Callable[[bool], object]) -> None:
        self._qmp = qmp
        self.settings = settings
        self._on_end: Callable[[bool], object] | None = on_end
        self._remove = qmp.add_listener(self._note, self._lost)

    def _begin(self, stream: socket.socket, command: str, **arguments: object) -> None:
        """QEMU has the stream from here; our end of it is closed, so that its end is seen."""
        try:
            self.settings.apply(self._qmp, outgoing=self.outgoing)
            if self.outgoing:
                _widen(stream)
            self._qmp.give_descriptor(STREAM, stream.fileno())
            self._qmp.execute(command, uri=f"fd:{STREAM}", **arguments)
        except BaseException:
            self.close()
            raise
        finally:
            stream.close()

    def reason(self) -> str:
        """Why it failed, in QEMU's words."""
        figures = self._figures()
        return str(figures.get("error-desc") or figures.get("status") or "QEMU is gone")

    def close(self) -> None:
        """Tell of nothing more."""
        self._on_end = None
        self._remove()

    def _figures(self) -> dict[str, Any]:
        try:
            return dict(self._qmp.execute("query-migrate"))
        except IolaneError as error:
            return {"error-desc": error.message}

    def _note(self, event: Event) -> None:
        if event["event"] == "MIGRATION" and (status := event["data"]["status"]) in ENDED:
            self._end(status == "completed")
        elif event["event"] in ("STOP", "RESUME"):
            self.stopped_at = time.monotonic() if event["event"] == "STOP" else None

    def _lost(self) -> None:
        self._end(False)

    def _end(self, arrived: bool) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(arrived)


class OutgoingMigration(MigrationSide):
    """The source's side. When QEMU fails, or is told to stop, it lets a guest that ran go on by itself; when
    it is through, the guest stands still."""

    outgoing = True

    def start(self, stream: socket.socket) -> None:
        """Begin. Raises IolaneError when QEMU refuses; the guest goes on then."""
        self._begin(stream, "migrate")

    def progress(self) -> Progress:
        """How far it is. Raises IolaneError when QEMU is gone."""
        return progress(self._qmp.execute("query-migrate"), self.settings.downtime)

    def cancel(self) -> None:
        """Stop it; the end is told of as any other. Does nothing when it is over."""
        with contextlib.suppress(QmpError):
            self._qmp.execute("migrate_cancel")


class IncomingMigration(MigrationSide):
    """The destination's side. The guest stands still when it has arrived."""

    outgoing = False

    def start(self, stream: socket.socket) -> None:
        """Take the guest from the stream. Raises IolaneError when QEMU refuses."""
        self._begin(stream, "migrate-incoming", **{"exit-on-error": False})


def announce(qmp: Qmp) -> None:
    """Tell the networks where the guest is, as often and as far apart as QEMU does after a move."""
    with contextlib.suppress(QmpError):  # nothing to announce
        rounds = {"initial": 50, "max": 550, "rounds": 5, "step": 100}
        qmp.execute("announce-self", **rounds)


def migrate(
    source: Qmp, destination: Qmp, timeout: float, settings: MigrationSettings | None = None
) -> Migration:
    """Between two machines of this process: return when the guest runs at the destination and stands still at
    the source.

    Raises:
        IolaneError: it went wrong or was not done in time; the guest goes on at the source.
    """
    started = time.monotonic()
    settings = settings or MigrationSettings()
    here, there = socket.socketpair()
    left, arrived = source.mark(), destination.mark()
    incoming = IncomingMigration(destination, settings, lambda arrived: None)
    outgoing = OutgoingMigration(source, settings, lambda arrived: None)
    with contextlib.closing(incoming), contextlib.closing(outgoing):
        try:
            incoming.start(there)
            outgoing.start(here)
            _wait(outgoing, source, left, timeout, "leave")
            figures = outgoing.progress()  # while the other side still reads
            _wait(incoming, destination, arrived, timeout, "arrive")
        except IolaneError:
            _stay(outgoing, source, left)
            raise
        finally:
            here.close()
            there.close()
        destination.execute("cont")
        seconds = time.monotonic() - started
        announce(destination)
    return Migration(
        seconds=seconds,
        downtime=figures.downtime,
        transferred=figures.transferred,
        passes=figures.passes,
    )


def _stay(outgoing: OutgoingMigration, source: Qmp, mark: int) -> None:
    """The guest goes on at the source."""
    with contextlib.suppress(IolaneError):
        outgoing.cancel()
        source.wait_event(
            {"MIGRATION"}, mark, patient(10.0), lambda event: event.get("data", {}).get("status") in ENDED
        )
        source.execute("cont")


def _wait(side: MigrationSide, qmp: Qmp, mark: int, timeout: float, what: str) -> None:
    event = qmp.wait_event(
        {"MIGRATION"}, mark, timeout, lambda event: event.get("data", {}).get("status") in ENDED
    )
    if event is None:
        raise IolaneError(
            f"the guest did not {what} within {timeout:g} s",
            remedy="it goes on at the source; give it more time, or less to do",
        )
    if event["data"]["status"] != "completed":
        raise IolaneError(f"the guest did not {what}: {side.reason()}")
