"""The control socket of a serving process: answers `iolane devices`, `trace` and `reset`."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import msgspec

from iolane._version import __version__
from iolane.carriers.control.machine_messages import MachineRequest, MachineStream, OpenConsole
from iolane.carriers.control.machine_service import ControlledMachine, follow_machine, serve_console
from iolane.carriers.control.mailbox import Mailbox
from iolane.carriers.control.messages import (
    LINE_LIMIT,
    DeviceReport,
    Done,
    Event,
    HeldReport,
    ListDevices,
    ListHeld,
    Refusal,
    Request,
    ResetDevice,
    SaveDevice,
    ServerReport,
    SetTrace,
)
from iolane.carriers.control.runtime import (
    CONTROL_SUFFIX,
    check_socket_path,
    remove_stale,
    runtime_directory,
    write_private,
)
from iolane.errors import IolaneError
from iolane.host.holding import Holder

CONNECTION_LIMIT = 32
LAST_WORDS = 2.0
"""Seconds for answers that are under way when the server stops."""
EVENT_LIMIT = 4096
"""Traced accesses that wait for a slow reader; more are dropped and counted, the device never waits."""

_log = logging.getLogger("iolane.control")
_decoder = msgspec.json.Decoder(Request)
_encoder = msgspec.json.Encoder()

Sink = Callable[[str | dict[str, Any]], None]


class Controlled(Protocol):
    """What the control socket needs of a served device."""

    @property
    def name(self) -> str:
        """The name the user knows it by."""

    def report(self) -> DeviceReport:
        """Its state and counters now."""

    def set_trace(self, request: SetTrace, sink: Sink | None) -> Callable[[], None]:
        """Set its trace level; returns the call that restores the one before."""

    def reset(self, kind: Literal["conventional", "flr"]) -> None:
        """Reset it."""

    def save(self) -> bytes:
        """Its state, now that no guest has it."""


class ControlServer:
    """One per serving process; a context manager. Its socket appears once it answers."""

    def __init__(
        self,
        devices: Sequence[Controlled],
        *,
        command: str | None = None,
        machine: ControlledMachine | None = None,
    ) -> None:
        self._machine = machine
        self._devices = {device.name: device for device in devices}
        self._command = shlex.join(sys.argv) if command is None else command
        self._started = time.time()
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._holders: list[Holder] = []
        self._lock = threading.Lock()
        self.path: Path | None = None
        self.rejected = 0
        """Requests that could not be understood, and peers refused."""

    def start(self) -> Path:
        """Listen; returns the socket's path."""
        remove_stale()
        directory = runtime_directory()
        path = check_socket_path(directory / f"{os.getpid()}-{id(self):x}{CONTROL_SUFFIX}")
        early = check_socket_path(path.with_suffix(".new"))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._listener.bind(os.fspath(early))
        self._listener.listen(CONNECTION_LIMIT)
        early.rename(path)  # whoever sees a control socket finds it answering
        self.path = path
        self._acceptor = threading.Thread(target=self._accept, name="control", daemon=True)
        self._acceptor.start()
        return path

    def stop(self) -> None:
        """Stop answering; connections are closed and the socket is removed."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        if self._acceptor is not None:
            self._acceptor.join()
        listener.close()
        with self._lock:
            open_now = list(self._connections.items())
        for connection, _ in open_now:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)  # nothing more is asked; what was asked is answered
        for connection, thread in open_now:
            thread.join(LAST_WORDS)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()

    def __enter__(self) -> ControlServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def add_holder(self, holder: Holder) -> None:
        """Tell of a physical function that this process holds, until `remove_holder`."""
        self._holders.append(holder)

    def remove_holder(self, holder: Holder) -> None:
        """It is held no more; again does nothing."""
        with contextlib.suppress(ValueError):
            self._holders.remove(holder)

    def add_device(self, device: Controlled) -> None:
        """Tell of one more device, until `remove_device`."""
        self._devices[device.name] = device

    def remove_device(self, name: str) -> None:
        """It is served no more; again does nothing."""
        self._devices.pop(name, None)

    def _accept(self) -> None:
        while (listener := self._listener) is not None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                if len(self._connections) >= CONNECTION_LIMIT or not _is_allowed(connection):
                    self.rejected += 1
                    connection.close()
                    continue
                thread = threading.Thread(target=self._serve, args=(connection,), name="control", daemon=True)
                self._connections[connection] = thread
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as lines:
                while line := lines.readline(LINE_LIMIT):
                    if not line.endswith(b"\n"):
                        self.rejected += 1
                        _send(connection, Refusal(f"a request is one line of at most {LINE_LIMIT} bytes"))
                        return
                    if not self._answer(connection, line):
                        return
        except OSError:  # the peer went away
            pass
        finally:
            with self._lock:
                self._connections.pop(connection, None)

    def _answer(self, connection: socket.socket, line: bytes) -> bool:
        """Serve one request; whether the connection goes on."""
        try:
            request = _decoder.decode(line)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            self.rejected += 1
            _send(connection, Refusal(f"not a request: {error}"))
            return True
        try:
            if self._stream(connection, request):
                return False
        except OSError:  # the peer's doing
            raise
        except Exception as error:
            _send(connection, _refusal(error))
            return True
        try:
            reply = self._perform(request)
        except Exception as error:
            reply = _refusal(error)
        _send(connection, reply)
        return True

    def _stream(self, connection: socket.socket, request: Request) -> bool:
        """Whether the request takes the connection; it has ended then."""
        if isinstance(request, SetTrace) and request.follow:
            self._follow(connection, request)
        elif isinstance(request, MachineStream):
            follow_machine(connection, self._the_machine(), request)
        elif isinstance(request, OpenConsole):
            serve_console(connection, self._the_machine().console(), replay=request.replay)
        else:
            return False
        return True

    def _the_machine(self) -> ControlledMachine:
        if self._machine is None:
            raise IolaneError("this process runs no machine", remedy="see `iolane ps`")
        return self._machine

    def _perform(self, request: Request) -> msgspec.Struct:
        match request:
            case ListDevices():
                return ServerReport(
                    pid=os.getpid(),
                    command=self._command,
                    started=self._started,
                    version=__version__,
                    devices=[device.report() for device in list(self._devices.values())],
                    machine=None if self._machine is None else self._machine.report(),
                )
            case ListHeld():
                return HeldReport([holder.held() for holder in list(self._holders)])
            case SetTrace():
                self._find(request.device).set_trace(request, None)
            case ResetDevice():
                self._find(request.device).reset(request.kind)
            case SaveDevice():
                write_private(Path(request.file), self._find(request.device).save())
            case _ if isinstance(request, MachineRequest):
                return self._the_machine().perform(request)
        return Done()

    def _find(self, name: str) -> Controlled:
        device = self._devices.get(name)
        if device is None:
            raise IolaneError(
                f"no device is called '{name}' here", remedy=f"there are: {', '.join(self._devices)}"
            )
        return device

    def _follow(self, connection: socket.socket, request: SetTrace) -> None:
        """Send traced accesses until the peer closes; the trace level before is restored then."""
        device = self._find(request.device)
        mailbox: Mailbox[str | dict[str, Any]] = Mailbox(EVENT_LIMIT)
        restore = device.set_trace(request, mailbox.put)
        try:
            _send(connection, Done())
            while mailbox.wait(connection):
                events, lost = mailbox.take()
                for event in events[:-1]:
                    _send(connection, Event(event))
                for event in events[-1:]:
                    _send(connection, Event(event, lost))
        finally:
            restore()
            mailbox.close()


def _refusal(error: Exception) -> Refusal:
    if isinstance(error, IolaneError):
        return Refusal(error.message, error.remedy)
    _log.error("a control request failed", exc_info=error)
    return Refusal(f"the request failed: {type(error).__name__}: {error}")


def _send(connection: socket.socket, message: msgspec.Struct) -> None:
    connection.sendall(_encoder.encode(message) + b"\n")


def _is_allowed(connection: socket.socket) -> bool:
    """The user that serves, or root (unix(7), SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return user in (os.getuid(), 0)
