"""`iolane receive`: waits at a place for machines that would like to come, and takes one."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType
from typing import Self

from iolane._version import __version__
from iolane.engines.qemu.credentials import TlsCredentials
from iolane.engines.qemu.migration_settings import MigrationSettings
from iolane.engines.qemu.patience import patient
from iolane.errors import IolaneError
from iolane.operations.migration.arrival import Arrival
from iolane.operations.migration.channel import Channel, answer, greeting
from iolane.operations.migration.destination import DestinationPhase
from iolane.operations.migration.messages import (
    PROTOCOL,
    Accepted,
    Ask,
    FromSource,
    Hello,
    NotRunning,
    Prepare,
    Refused,
)
from iolane.operations.migration.offer import Finding
from iolane.operations.migration.sides import MachineMaker
from iolane.operations.migration.uri import Place, prepare

CONNECTIONS = 16
"""At a time; more are closed at once."""
GREETING_SECONDS = 10.0
"""For a connection to say what it is for, certificates included."""
LOOK_SECONDS = 1.0
REMEMBERED = 100
"""Moves of which is remembered that they came to nothing."""

_log = logging.getLogger("iolane.migration")


class Receiver:
    """A context manager: entering listens, leaving ends everything but a machine that runs.

    Args:
        place: where to listen.
        maker: makes machines.
        credentials: both sides prove who they are, and everything is encrypted.
        tell: gets a line about what happens.
    """

    def __init__(
        self,
        place: Place,
        maker: MachineMaker,
        *,
        credentials: TlsCredentials | None = None,
        tell: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.place = place
        self._maker = maker
        self._credentials = credentials
        self._tell = tell
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Arrival | None] = queue.SimpleQueue()
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._greeting: set[socket.socket] = set()
        self._channels: set[Channel[FromSource]] = set()
        self._hellos: dict[Channel[FromSource], Hello] = {}
        self._gone: OrderedDict[str, str] = OrderedDict()
        self._closing = False
        self.arrival: Arrival | None = None
        """What arrives, or has arrived."""
        self.free = threading.Event()
        """Set while nothing arrives, and a machine may come."""
        self.free.set()
        self.rejected = 0
        """Connections that said what can't be understood, or whose user may not."""

    def __enter__(self) -> Self:
        if self._credentials is not None:
            self._credentials.files(server=True)
        self._listener = self.place.listen()
        for name, work in (("accept", self._accept), ("receive", self._work)):
            thread = threading.Thread(target=work, name=f"migration {name}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def receive(self, timeout: float | None = None) -> Arrival | None:
        """A machine that runs here now, or None when none has come in time (or this is being closed)."""
        try:
            return self._results.get(timeout=timeout)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Listen no more. What has not arrived ends; what stands still in doubt does, too."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            greeting = list(self._greeting)
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
        for connection in greeting:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._inbox.put(lambda: None)
        for thread in self._threads:
            thread.join()
        if self._listener is not None:
            self._listener.close()
        if self.place.path is not None:
            self.place.path.unlink(missing_ok=True)
        for channel in list(self._channels):
            channel.close()
        self._results.put(None)

    def post(self, call: Callable[[], object]) -> None:
        """Have something done in the thread of the arrivals."""
        self._inbox.put(call)

    def _decide(self, run: bool) -> bool:
        """In a thread of a control socket."""
        answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

        def decide() -> None:
            arrival = self.arrival
            if arrival is None:
                answers.put(False)
            else:
                answers.put(arrival.source_ended() if run else arrival.end("its operator ended it"))

        self.post(decide)
        try:
            return answers.get(timeout=patient(60.0))
        except queue.Empty:
            return False

    # -- connections ----------------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._closing or len(self._greeting) >= CONNECTIONS or not _is_allowed(connection):
                    self.rejected += 1
                    connection.close()
                    continue
                self._greeting.add(connection)
            threading.Thread(
                target=self._greet, args=(connection,), name="migration greeting", daemon=True
            ).start()

    def _greet(self, connection: socket.socket) -> None:
        wanted = False
        try:
            connection.settimeout(patient(GREETING_SECONDS))
            prepare(connection)
            what = greeting(connection)
            if what == "":
                wanted = True
                self._talk(answer(connection, self._credentials))
            elif what is not None:
                connection.settimeout(None)
                wanted = self._fill(what, connection)
        except (OSError, IolaneError) as error:
            self._tell(f"a connection was refused: {error}")
        finally:
            with self._lock:
                self._greeting.discard(connection)
            if not wanted:
                self.rejected += 1
                connection.close()

    def _fill(self, token: str, connection: socket.socket) -> bool:
        arrival = self.arrival
        if arrival is None or not arrival.waiting.fill(token, connection):
            return False
        self.post(arrival.take_stream)
        return True

    def _talk(self, channel: Channel[FromSource]) -> None:
        with self._lock:
            crowded = self._closing or len(self._channels) >= CONNECTIONS
            if not crowded:
                self._channels.add(channel)
        if crowded:
            channel.close()
            return
        channel.start(
            lambda message: self.post(lambda: self._hear(channel, message)),
            lambda reason: self.post(lambda: self._lose(channel, reason)),
        )

    # -- the thread of the arrivals -------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._closing:
            try:
                call = self._inbox.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                call = self._look
            try:
                call()
            except Exception:
                _log.exception("what a source said could not be done")
            self._settle()
        if self.arrival is not None:
            self.arrival.end("the destination was ended")
            self.arrival.close()

    def _look(self) -> None:
        if self.arrival is not None:
            self.arrival.look()

    def _settle(self) -> None:
        """Has the arrival come to an end?"""
        arrival = self.arrival
        if arrival is None:
            return
        if arrival.agreement.phase is DestinationPhase.GONE:
            reason = arrival.agreement.reason
            self._tell(f"the machine does not come: {reason}")
            self._gone[arrival.identity] = reason
            while len(self._gone) > REMEMBERED:
                self._gone.popitem(last=False)
            self.arrival = None
            arrival.waiting.close()
            self.free.set()
        elif arrival.agreement.phase is DestinationPhase.RUNNING and not arrival.told:
            arrival.told = True
            for problem in arrival.problems:
                self._tell(problem)
            self._results.put(arrival)

    def _hear(self, channel: Channel[FromSource], message: FromSource) -> None:
        arrival = self.arrival
        if isinstance(message, Hello):
            self._hello(channel, message)
        elif isinstance(message, Ask):
            self._ask(channel, message)
        elif isinstance(message, Prepare):
            self._prepare(channel)
        elif arrival is not None and arrival.channel is channel:
            arrival.hear(message)

    def _hello(self, channel: Channel[FromSource], hello: Hello) -> None:
        findings, notes = self._findings(hello)
        if findings:
            self._tell(f"{hello.offer.name} is refused: {'; '.join(str(each) for each in findings)}")
            channel.send(Refused(findings[:100]))
            return
        if not hello.dry_run:
            self._hellos[channel] = hello
        channel.send(Accepted(notes[:100]))

    def _findings(self, hello: Hello) -> tuple[list[Finding], list[str]]:
        if hello.protocol != PROTOCOL:
            problem = (
                f"iolane {hello.version} speaks version {hello.protocol} of this, {__version__} {PROTOCOL}"
            )
            return [Finding(problem, "have the same iolane on both sides")], []
        if self.arrival is not None:
            return [Finding("another machine has come here, or is about to", "iolane receive elsewhere")], []
        try:
            return self._maker.preflight(hello.offer)
        except IolaneError as error:
            return [Finding(error.message, error.remedy)], []

    def _prepare(self, channel: Channel[FromSource]) -> None:
        hello = self._hellos.pop(channel, None)
        if hello is None:
            return
        if self.arrival is not None:
            channel.send(NotRunning("another machine was faster"))
            return
        self.free.clear()
        self._tell(f"{hello.offer.name} comes")
        try:
            machine = self._maker.make(hello.offer)
        except IolaneError as error:
            self.free.set()
            self._tell(f"the machine does not come: {error}")
            channel.send(NotRunning(str(error)[:4000]))
            return
        settings = MigrationSettings(credentials=self._credentials)
        self.arrival = Arrival(hello.id, machine, channel, settings, self.post)
        machine.on_decision(self._decide)
        self.arrival.begin()

    def _ask(self, channel: Channel[FromSource], ask: Ask) -> None:
        arrival = self.arrival
        if arrival is not None and arrival.identity == ask.id:
            arrival.hear_again(channel, ask)
        elif ask.id in self._gone:
            channel.send(NotRunning(self._gone[ask.id][:4000]))
        else:  # an earlier process may have had it, and have let it go
            channel.send(Refused([Finding("this process knows nothing of that move")]))

    def _lose(self, channel: Channel[FromSource], reason: str) -> None:
        self._channels.discard(channel)
        self._hellos.pop(channel, None)
        arrival = self.arrival
        if arrival is not None and arrival.channel is channel:
            arrival.link_lost(reason)
            if arrival.agreement.in_doubt:
                self._tell(
                    "the link was cut when all of the machine was here: it stands still, and the source "
                    "knows more (there: iolane migrate --resolve NAME)"
                )
        channel.close()


def _is_allowed(connection: socket.socket) -> bool:
    """Over a unix socket: this user, or root (unix(7), SO_PEERCRED)."""
    if connection.family != socket.AF_UNIX:
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return user in (os.getuid(), 0)
