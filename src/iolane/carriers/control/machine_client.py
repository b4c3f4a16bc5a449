"""Talking to running machines: finding one by its name, and having it do what its verbs say."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from iolane.carriers.control.client import ControlClient, serving
from iolane.carriers.control.machine_messages import (
    ConsoleText,
    FollowEvents,
    MachineEvent,
    MachineReport,
    OpenConsole,
    PauseMachine,
    PlugDevice,
    PluggedDevice,
    ResumeMachine,
    ShowConsole,
    ShowMachine,
    StopMachine,
    UnplugDevice,
    Unplugged,
)
from iolane.carriers.control.messages import Done, ServerReport
from iolane.errors import IolaneError

MARGIN = 30.0
"""Seconds that an answer may take beyond what was asked for."""
PLUG_LIMIT = 300.0
"""Seconds: a function's guest memory is mapped for its DMA, which may take long."""


class MachineClient(ControlClient):
    """One connection to the process of one machine."""

    def show(self) -> MachineReport:
        """The machine as it is now."""
        return self._ask(ShowMachine(), MachineReport)

    def pause(self) -> None:
        """Hold it."""
        self._ask(PauseMachine(), Done, MARGIN)

    def resume(self) -> None:
        """Let it go on."""
        self._ask(ResumeMachine(), Done, MARGIN)

    def shut_down(self, *, force: bool = False, timeout: float = 30.0) -> None:
        """Have the guest power itself off, or end it at once. Raises IolaneError when it has not in time."""
        self._ask(StopMachine(force, timeout), Done, timeout + MARGIN)

    def plug(self, device: str, *, folder: Path | None = None, port: str | None = None) -> PluggedDevice:
        """Make a device and plug it in."""
        where = None if folder is None else str(folder)
        return self._ask(PlugDevice(device, folder=where, port=port), PluggedDevice, PLUG_LIMIT)

    def plug_passed(self, function: str, *, port: str | None = None) -> PluggedDevice:
        """Take a function of the host and plug it in."""
        return self._ask(PlugDevice(passed=function, port=port), PluggedDevice, PLUG_LIMIT)

    def unplug(self, device: str, timeout: float = 30.0) -> str:
        """Ask the guest to let go of a device: agreed, refused or no-answer."""
        return self._ask(UnplugDevice(device, timeout), Unplugged, timeout + MARGIN).outcome

    def console_text(self) -> str:
        """What the console has shown, the last of it."""
        return self._ask(ShowConsole(), ConsoleText).text

    def machine_events(self) -> Iterator[MachineEvent]:
        """What happens from now on, until the machine has ended."""
        self._ask(FollowEvents(), Done)
        self._socket.settimeout(None)
        return self._following()

    def _following(self) -> Iterator[MachineEvent]:
        while line := self._line():
            yield self._decode(line, MachineEvent)

    def open_console(self, *, replay: bool = True) -> RemoteConsole:
        """The console; this connection is its own from then on."""
        self._send(OpenConsole(replay))
        reply = b""
        while not reply.endswith(b"\n"):  # not a byte more: what follows is the console's
            with contextlib.suppress(OSError):
                if more := self._socket.recv(1):
                    reply += more
                    continue
            raise IolaneError(f"{self.path}: the machine's process went away")
        self._decode(reply, Done)
        return RemoteConsole(self._socket.dup())


class RemoteConsole:
    """A console in another process, read in a thread of its own. A context manager."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        self._connection = connection
        self._changed = threading.Condition()
        self._listener: Callable[[bytes], None] | None = None
        self._at_end: Callable[[], object] | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._read, name="console", daemon=True)

    def __enter__(self) -> RemoteConsole:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Type `data`. Waits while the guest takes nothing."""
        with contextlib.suppress(OSError):  # it has ended, which is told otherwise
            self._connection.sendall(data)

    def attach(self, listener: Callable[[bytes], None] | None, *, replay: bool = True) -> None:
        """`listener` gets what comes from now on; what is replayed was decided when it was opened."""
        with self._changed:
            self._listener = listener
            if listener is not None and not self._thread.is_alive() and not self._ended:
                self._thread.start()

    def on_end(self, call: Callable[[], object] | None) -> None:
        """`call` is called when the machine has ended, at once if it has."""
        with self._changed:
            self._at_end = call
            if self._ended and call is not None:
                call()

    def wait_end(self) -> None:
        """Return when the machine has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended)

    def close(self) -> None:
        """Leave it; the machine goes on."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join()
        self._connection.close()

    def _read(self) -> None:
        while data := self._receive():
            with self._changed:
                listener = self._listener
            if listener is not None:
                listener(data)
        with self._changed:
            self._ended = True
            if self._at_end is not None:
                self._at_end()
            self._changed.notify_all()

    def _receive(self) -> bytes:
        try:
            return self._connection.recv(1 << 16)
        except OSError:
            return b""


def running_machines() -> list[tuple[Path, ServerReport, MachineReport]]:
    """Every machine of this user, with its process and control socket, by name."""
    found = [(path, server, server.machine) for path, server in serving() if server.machine is not None]
    return sorted(found, key=lambda row: row[2].name)


def find_machine(name: str) -> tuple[Path, MachineReport]:
    """The control socket of the machine called `name`, or of the process with that number."""
    machines = running_machines()
    for path, server, machine in machines:
        if name in (machine.name, str(server.pid)):
            return path, machine
    names = ", ".join(machine.name for _, _, machine in machines)
    raise IolaneError(
        f"no running machine is called '{name}'",
        remedy=f"running: {names}" if names else "none is running; see `iolane run`",
    )


def connect_machine(name: str) -> MachineClient:
    """A connection to the machine called `name`."""
    return MachineClient(find_machine(name)[0])
