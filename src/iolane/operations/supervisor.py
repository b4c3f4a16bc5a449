"""Device servers that are kept running: each in a process, started anew when it ends or hangs.

A vhost-user front end reconnects by itself (QEMU and libvirt: `reconnect`), and what the dead server had
taken is done again by the next one from the in-flight table ("Inflight I/O tracking", vhost-user.rst), so
that nothing that was acknowledged is lost. A vfio-user client does not reconnect; its device is there for the
next machine.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import msgspec

from iolane.carriers.control import RunDirectory
from iolane.devices.specification import DeviceSpecification
from iolane.errors import IolaneError
from iolane.model.observers import Observers
from iolane.operations.device_process import DeviceProcess
from iolane.operations.interruption import INTERRUPTION
from iolane.operations.restarts import RestartPolicy, Restarts
from iolane.operations.service.notify import NotifyListener

_log = logging.getLogger("iolane.supervisor")

EVENTS_KEPT = 64
START_PATIENCE = 60.0
"""Seconds for a server to be ready."""
WATCHDOG = 30.0
"""Seconds without a word from a server after which it hangs."""


class SupervisorEventKind(StrEnum):
    """What happened to a server."""

    READY = "ready"
    ENDED = "ended"
    RESTARTING = "restarting"
    DEAD = "dead"
    """It ended too often, and is not started any more."""


LEVELS = {
    SupervisorEventKind.READY: logging.INFO,
    SupervisorEventKind.ENDED: logging.ERROR,
    SupervisorEventKind.RESTARTING: logging.WARNING,
    SupervisorEventKind.DEAD: logging.CRITICAL,
}


class SupervisorEvent(NamedTuple):
    """Something that happened to one of the servers."""

    kind: SupervisorEventKind
    name: str
    time: float
    """Seconds since the epoch."""
    text: str
    pid: int | None = None


class SupervisedServer(msgspec.Struct, frozen=True):
    """What is to be kept running: a device at a socket, with more options of its `iolane serve`."""

    device: DeviceSpecification
    name: str
    socket: Path
    options: tuple[str, ...] = ()


class SupervisedState(msgspec.Struct, frozen=True):
    """One of the servers now."""

    name: str
    socket: str
    pid: int | None
    """None while there is no process."""
    restarts: int
    dead: bool
    """Not started any more."""
    problem: str | None = None
    """What ended it last."""


class Supervisor:
    """Keeps servers running while it is entered; leaving it ends them, and so does the end of this process.

    Args:
        servers: what is to run.
        policy: when one that ended is started anew.
        watchdog: seconds within which a server has to say that it is well; None: it is not asked.
        own_logs: each server has its log beside its socket; else all of it goes to stderr.
    """

    def __init__(
        self,
        servers: Sequence[SupervisedServer],
        *,
        policy: RestartPolicy | None = None,
        watchdog: float | None = WATCHDOG,
        own_logs: bool = False,
    ) -> None:
        self.on_event: Observers[SupervisorEvent] = Observers()
        self.events: deque[SupervisorEvent] = deque(maxlen=EVENTS_KEPT)
        self._servers = servers
        self._policy = policy or RestartPolicy()
        self._watchdog = watchdog
        self._own_logs = own_logs
        self._keepers: list[_Keeper] = []
        self._stack = ExitStack()
        self._dead = -1

    @property
    def dead(self) -> int:
        """A descriptor that can be read once one of the servers is dead for good."""
        return self._dead

    @property
    def ready(self) -> dict[str, bytes]:
        """Name -> how its device is used: the JSON of `iolane serve --json`."""
        return {keeper.server.name: keeper.said for keeper in self._keepers}

    def start(self) -> None:
        """Start all of them, and return when all are ready.

        Raises:
            IolaneError: one could not start; none of them runs then.
        """
        try:
            with INTERRUPTION.held():
                folder = self._stack.enter_context(RunDirectory()).path
                self._dead = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._stack.callback(os.close, self._dead)
            for server in self._servers:
                with INTERRUPTION.held():
                    keeper = _Keeper(server, folder, self)
                    self._stack.callback(keeper.stop)
                    self._keepers.append(keeper)
            for keeper in self._keepers:
                keeper.begin()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End them all; again does nothing."""
        with INTERRUPTION.held():
            self._stack.close()
            self._keepers.clear()

    def __enter__(self) -> Supervisor:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def states(self) -> list[SupervisedState]:
        """Every server as it is now."""
        return [keeper.state() for keeper in self._keepers]

    def problem(self) -> str | None:
        """Why one of them does not run and won't."""
        return next((f"{state.name}: {state.problem}" for state in self.states() if state.dead), None)

    def _told(self, event: SupervisorEvent) -> None:
        """An event of one of the servers, in the thread that keeps it."""
        self.events.append(event)
        _log.log(
            LEVELS[event.kind],
            "%s: %s: %s",
            event.name,
            event.kind,
            event.text,
            extra={"device": event.name, "event": event.kind.value},
        )
        if event.kind is SupervisorEventKind.DEAD:
            os.eventfd_write(self._dead, 1)
        self.on_event.notify(event)


class _Keeper:
    """One server, and the thread that waits for its end."""

    def __init__(self, server: SupervisedServer, folder: Path, supervisor: Supervisor) -> None:
        self.server = server
        self.said = b""
        self._supervisor = supervisor
        self._watchdog = supervisor._watchdog
        self._restarts = Restarts(supervisor._policy)
        self._lock = threading.Lock()
        self._dead = False
        self._problem: str | None = None
        self._thread: threading.Thread | None = None
        self._process: DeviceProcess | None = None
        self._notices = NotifyListener(folder / f"{server.name}.notify")
        self._ending = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._process = self._started()
        except BaseException:
            self.stop()
            raise

    def begin(self) -> None:
        """Wait until it is ready, then keep it."""
        process = self._process
        assert process is not None
        self.said = process.wait_ready(START_PATIENCE)
        self._tell(SupervisorEventKind.READY, f"process {process.pid} serves {self.server.socket}")
        name = f"keeper of {self.server.name}"
        self._thread = threading.Thread(target=self._keep, args=(process,), name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the server, and the thread."""
        os.eventfd_write(self._ending, 1)
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        elif self._process is not None:
            self._process.stop()
        self._process = None
        self._notices.close()
        os.close(self._ending)

    def state(self) -> SupervisedState:
        with self._lock:
            return SupervisedState(
                name=self.server.name,
                socket=str(self.server.socket),
                pid=None if self._process is None else self._process.pid,
                restarts=self._restarts.count,
                dead=self._dead,
                problem=self._problem,
            )

    def _started(self, *, again: bool = False) -> DeviceProcess:
        """A process of it. The state that it may begin with is that of the first: later it would be old."""
        environment = {"NOTIFY_SOCKET": str(self._notices.path), "WATCHDOG_PID": ""}
        environment["WATCHDOG_USEC"] = "" if self._watchdog is None else str(int(self._watchdog * 1e6))
        server = self.server
        return DeviceProcess(
            msgspec.structs.replace(server.device, state=None) if again else server.device,
            server.name,
            server.socket,
            options=server.options,
            environment=environment,
            own_log=self._supervisor._own_logs,
        )

    def _keep(self, process: DeviceProcess) -> None:
        kept: DeviceProcess | None = process
        while kept is not None:
            how = self._watch(kept)
            with self._lock:
                self._process = None
                self._problem = how
            kept.stop()
            if how is None:
                return
            self._tell(SupervisorEventKind.ENDED, how)
            kept = self._again()

    def _watch(self, process: DeviceProcess) -> str | None:
        """What ended it; None when it is to be ended by us."""
        pidfd = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            for descriptor in (pidfd, self._ending, self._notices.fileno()):
                poll.register(descriptor, select.POLLIN)
            heard = time.monotonic()
            while True:
                ready = {descriptor for descriptor, _ in poll.poll(self._left(heard))}
                if self._ending in ready:
                    return None
                if self._hear(process.pid):
                    heard = time.monotonic()
                if pidfd in ready:
                    return process.problem() or f"the process of {process.name} ended"
                if self._watchdog is not None and time.monotonic() - heard >= self._watchdog:
                    process.kill()
                    return f"the process of {process.name} hangs: no word for {self._watchdog:g} s"
        finally:
            os.close(pidfd)

    def _left(self, heard: float) -> float | None:
        """Milliseconds until it hangs."""
        if self._watchdog is None:
            return None
        return max(0.0, heard + self._watchdog - time.monotonic()) * 1000 + 1

    def _hear(self, pid: int) -> bool:
        """Whether it said that it is well."""
        well = False
        while (said := self._notices.receive(pid)) is not None:
            well |= said.get("WATCHDOG") == "1"
        return well

    def _again(self) -> DeviceProcess | None:
        """Its next process, ready; None when it is to be ended, or dead for good."""
        while (delay := self._restarts.next(time.monotonic())) is not None:
            self._tell(SupervisorEventKind.RESTARTING, f"in {delay:g} s")
            if _readable(self._ending, delay):
                return None
            problem = self._try()
            if problem is None:
                return self._process
            if _readable(self._ending, 0):
                return None
            with self._lock:
                self._problem = problem
            self._tell(SupervisorEventKind.ENDED, problem)
        policy = self._restarts.policy
        with self._lock:
            self._dead = True
        text = f"restarted {policy.most} times within {policy.within:g} s, not again; {self._problem}"
        self._tell(SupervisorEventKind.DEAD, text)
        return None

    def _try(self) -> str | None:
        """Start it; why that failed."""
        try:
            process = self._started(again=True)
        except OSError as error:
            return f"no process for {self.server.name}: {error.strerror}"
        try:
            said = process.wait_ready(START_PATIENCE, cancel=self._ending)
        except IolaneError as error:
            process.stop()
            return error.message
        with self._lock:
            self._process = process
        self.said = said
        self._tell(SupervisorEventKind.READY, f"process {process.pid} serves {self.server.socket}")
        return None

    def _tell(self, kind: SupervisorEventKind, text: str) -> None:
        pid = None if self._process is None else self._process.pid
        self._supervisor._told(SupervisorEvent(kind, self.server.name, time.time(), text, pid))


def _readable(descriptor: int, seconds: float) -> bool:
    """Whether it can be read, now or before the time is over."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
