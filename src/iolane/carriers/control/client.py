"""Talking to serving processes: who serves here, what their devices do, and changing it while they run."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from iolane.carriers.control.messages import (
    REPLY_LIMIT,
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
from iolane.carriers.control.runtime import remove_stale
from iolane.errors import IolaneError
from iolane.host.holding import HeldFunction

T = TypeVar("T", bound=msgspec.Struct)
_TIMEOUT = 10.0


class ControlClient:
    """One connection to one serving process."""

    def __init__(self, path: Path, *, timeout: float = _TIMEOUT) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._timeout = timeout
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(os.fspath(path))
        except OSError as error:
            self._socket.close()
            raise IolaneError(f"{path}: nobody serves there any more") from error
        self._lines = self._socket.makefile("rb")

    def report(self, timeout: float = _TIMEOUT) -> ServerReport:
        """The serving process with all its devices; it has `timeout` seconds for the answer."""
        return self._ask(ListDevices(), ServerReport, timeout)

    def held(self) -> list[HeldFunction]:
        """The physical functions that it holds."""
        return self._ask(ListHeld(), HeldReport).held

    def reset(self, device: str, *, flr: bool = False) -> None:
        """Reset a device."""
        self._ask(ResetDevice(device, "flr" if flr else "conventional"), Done)

    def save(self, device: str, file: Path) -> None:
        """Save the state of a device that no guest has into a new file."""
        self._ask(SaveDevice(device, str(file.absolute())), Done)

    def set_trace(self, request: SetTrace) -> None:
        """Set a device's trace level; with `follow`, the accesses come out of `events`."""
        self._ask(request, Done)

    def events(self) -> Iterator[Event]:
        """The accesses that a `follow` asked for, until the serving process ends."""
        self._socket.settimeout(None)
        while line := self._line():
            yield self._decode(line, Event)

    def close(self) -> None:
        """End the connection; a trace that was followed ends with it."""
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: Request, reply: type[T], timeout: float | None = None) -> T:
        self._socket.settimeout(self._timeout if timeout is None else timeout)
        self._send(request)
        line = self._line()
        if not line:
            raise IolaneError(f"{self.path}: the serving process went away")
        return self._decode(line, reply)

    def _send(self, request: Request) -> None:
        try:
            self._socket.sendall(msgspec.json.encode(request) + b"\n")
        except OSError as error:
            raise IolaneError(f"{self.path}: the serving process went away") from error

    def _line(self) -> bytes:
        try:
            return self._lines.readline(REPLY_LIMIT)
        except TimeoutError:
            raise IolaneError(f"{self.path}: the serving process does not answer") from None
        except OSError:
            return b""

    def _decode(self, line: bytes, reply: type[T]) -> T:
        try:
            answer: T | Refusal
            if line.startswith(b'{"error"'):
                answer = msgspec.json.decode(line, type=Refusal)
            else:
                answer = msgspec.json.decode(line, type=reply)
        except msgspec.DecodeError as error:
            raise IolaneError(f"{self.path}: an answer that can't be read: {error}") from error
        if isinstance(answer, Refusal):
            raise IolaneError(answer.error, remedy=answer.remedy)
        return answer


def serving() -> list[tuple[Path, ServerReport]]:
    """Every serving process of this user, with its control socket; what killed ones left is removed."""
    found = []
    for path in remove_stale():
        try:
            with ControlClient(path) as client:
                found.append((path, client.report()))
        except IolaneError:  # it ended in between
            continue
    return found


def held_functions() -> list[HeldFunction]:
    """Every physical function that a process of this user holds."""
    found = []
    for path in remove_stale():
        try:
            with ControlClient(path) as client:
                found += client.held()
        except IolaneError:  # it ended in between, or is an older iolane that knows no such question
            continue
    return found


def find_device(name: str) -> tuple[Path, DeviceReport]:
    """The control socket that serves `NAME` or `PID/NAME`; refuses a name that several processes serve."""
    wanted, _, bare = name.rpartition("/")
    every = [(path, server, device) for path, server in serving() for device in server.devices]
    matches = [row for row in every if row[2].name == bare and wanted in ("", str(row[1].pid))]
    if len(matches) == 1:
        return matches[0][0], matches[0][2]
    if matches:
        choices = ", ".join(f"{server.pid}/{device.name}" for _, server, device in matches)
        raise IolaneError(f"several processes serve a device '{bare}'", remedy=f"say which: {choices}")
    running = ", ".join(sorted(device.name for _, _, device in every))
    raise IolaneError(
        f"no running device is called '{name}'",
        remedy=f"running: {running}" if running else "nothing is served; see `iolane serve` and `iolane run`",
    )
