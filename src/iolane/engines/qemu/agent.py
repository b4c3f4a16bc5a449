"""The host's side of the guest agent (agent.c): commands and files over a serial port of their own.

A frame is magic (u8, 0xA9), type (u8), sequence number (u16, of the sender), length (u32), all little-endian,
and its data. The agent's first frame, HELLO, comes after a marker line, so that what a port says before is
skipped. Data for the guest is sent in a window of unacknowledged bytes: the guest's serial port has no flow
control of its own and a buffer of 64 KiB.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from iolane.engines.qemu.patience import patient
from iolane.errors import IolaneError

MARKER = b"\n#iolane-agent#\n"
MAGIC = 0xA9
VERSION = 1
CHUNK = 2048
WINDOW = 8192
MARGIN = 15.0
"""Seconds the guest may take beyond a command's own time limit to say that it is over."""

ABANDON_SECONDS = 5.0
"""Seconds an abandoned request may take to end."""

_HEADER = struct.Struct("<BBHI")
_RESULT = struct.Struct("<iIQ")
_EXIT = struct.Struct("<iI")


class Type(IntEnum):
    """Types of frames."""

    RUN = 1
    DATA = 2
    PUSH = 3
    PULL = 4
    POWER = 5
    KILL = 6
    HELLO = 16
    STDOUT = 17
    STDERR = 18
    EXIT = 19
    CREDIT = 20
    RESULT = 21
    CONTENT = 22


class AgentError(IolaneError):
    """The guest agent does not answer, or not sensibly."""


class AgentLostError(AgentError):
    """The agent's port was closed: the machine is gone."""


class CommandFailedError(IolaneError):
    """A command in the guest ended with an exit code other than 0."""


@dataclass(frozen=True)
class CommandResult:
    """How a command in the guest ended and what it wrote."""

    command: str
    exit_code: int
    stdout: bytes
    stderr: bytes
    timed_out: bool = False
    seconds: float = 0.0

    @property
    def output(self) -> str:
        """All that was written, as text: standard output, then standard error."""
        return (self.stdout + self.stderr).decode(errors="replace")

    def check(self) -> CommandResult:
        """Itself, or `CommandFailedError` when the exit code is not 0."""
        if self.exit_code == 0 and not self.timed_out:
            return self
        how = "did not end in time" if self.timed_out else f"ended with exit code {self.exit_code}"
        raise CommandFailedError(f"the guest's command `{self.command}` {how}: {self.output.strip()[-2000:]}")


OutputFunction = Callable[[Type, bytes], None]


class GuestAgent:
    """Speaks with the agent of one guest. One request at a time; the caller serialises."""

    def __init__(self, port: socket.socket) -> None:
        self._port = port
        port.setblocking(True)
        self._held = bytearray()
        self._sending = threading.Lock()
        self._lost_step = ""
        self.release = ""

    def wait_hello(self, timeout: float) -> None:
        """Waits for the agent to come up, skipping whatever its port says before."""
        deadline = time.monotonic() + timeout
        self._held.clear()
        self._lost_step = ""
        seen = b""
        while not seen.endswith(MARKER):
            seen = seen[-64:] + self._receive(1, deadline, "to start")
        kind, data = self._frame(deadline)
        if kind is not Type.HELLO or len(data) < 4:
            raise AgentError(f"the guest agent greets with {kind.name}")
        (version,) = struct.unpack_from("<I", data)
        if version != VERSION:
            raise AgentError(f"the guest agent speaks version {version}, not {VERSION}")
        self.release = data[4:].decode(errors="replace")

    def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes = b"",
        timeout: float = 60.0,
        merge: bool = False,
        on_output: OutputFunction | None = None,
    ) -> CommandResult:
        """Runs a command in the guest's shell. After `timeout` seconds it is killed with all its children."""
        text = command if isinstance(command, str) else shlex.join(command)
        if "\0" in text or len(text) > 16000:
            raise IolaneError("a guest command must be shorter than 16000 characters and hold no NUL")
        started = time.monotonic()
        deadline = started + timeout + patient(MARGIN)
        with self._request(Type.KILL, Type.EXIT):
            self._send(Type.RUN, struct.pack("<II", max(1, int(timeout * 1000)), int(merge)) + text.encode())
            code, flags, output, errors = self._follow_command(_Feeder(self, stdin), deadline, on_output)
        return CommandResult(text, code, output, errors, bool(flags & 1), time.monotonic() - started)

    def _follow_command(
        self, feeder: _Feeder, deadline: float, on_output: OutputFunction | None
    ) -> tuple[int, int, bytes, bytes]:
        pieces: dict[Type, list[bytes]] = {Type.STDOUT: [], Type.STDERR: []}
        while True:
            feeder.feed()
            kind, data = self._frame(deadline)
            if kind in pieces:
                pieces[kind].append(data)
                if on_output is not None:
                    on_output(kind, data)
            elif kind is Type.CREDIT:
                feeder.credit(data)
            elif kind is Type.EXIT:
                code, flags = _EXIT.unpack(data)
                break
            else:
                raise AgentError(f"the guest agent answers a command with {kind.name}")
        feeder.settle(deadline)
        output, errors = (b"".join(pieces[kind]) for kind in (Type.STDOUT, Type.STDERR))
        return code, flags, output, errors

    def push(self, path: str, data: bytes, mode: int = 0o644, timeout: float = 120.0) -> None:
        """Writes a file in the guest; parents are made; the content is compared by checksum."""
        deadline = time.monotonic() + timeout
        with self._request(Type.DATA, Type.RESULT):
            self._send(Type.PUSH, struct.pack("<I", mode) + path.encode())
            feeder = _Feeder(self, data)
            while True:
                feeder.feed()
                kind, answer = self._frame(deadline)
                if kind is Type.CREDIT:
                    feeder.credit(answer)
                elif kind is Type.RESULT:
                    break
                else:
                    raise AgentError(f"the guest agent answers a file with {kind.name}")
        self._check_result(answer, path, zlib.crc32(data), len(data))

    def pull(self, path: str, timeout: float = 120.0) -> bytes:
        """Reads a file of the guest; the content is compared by checksum."""
        deadline = time.monotonic() + timeout
        pieces = []
        with self._request(None, Type.RESULT):
            self._send(Type.PULL, path.encode())
            while True:
                kind, data = self._frame(deadline)
                if kind is Type.RESULT:
                    break
                if kind is not Type.CONTENT:
                    raise AgentError(f"the guest agent answers a request for a file with {kind.name}")
                pieces.append(data)
        content = b"".join(pieces)
        self._check_result(data, path, zlib.crc32(content), len(content))
        return content

    def power(self, *, reboot: bool) -> None:
        """Syncs and powers the guest off, or reboots it, also while a command runs. There is no answer."""
        self._send(Type.POWER, bytes([reboot]))

    @staticmethod
    def _check_result(answer: bytes, path: str, crc: int, size: int) -> None:
        error, guest_crc, guest_size = _RESULT.unpack(answer)
        if error:
            raise IolaneError(f"{path} in the guest: {os.strerror(error)}")
        if (guest_crc, guest_size) != (crc, size):
            raise AgentError(
                f"{path} was damaged on its way ({guest_size} of {size} bytes, checksums differ)"
            )

    @contextlib.contextmanager
    def _request(self, abandon: Type | None, ending: Type) -> Iterator[None]:
        """One request. When its caller is interrupted (Ctrl-C, an output function that raises), the guest is
        told to abandon it and what is still under way is taken, so that the next request finds it in step."""
        if self._lost_step:
            raise AgentError(f"the guest agent lost step: {self._lost_step}", remedy="reset the machine")
        try:
            yield
        except AgentError as error:
            self._lost_step = error.message
            raise
        except BaseException:
            try:
                if abandon is not None:
                    self._send(abandon)
                deadline = time.monotonic() + patient(ABANDON_SECONDS)
                while self._frame(deadline)[0] is not ending:
                    pass
            except AgentError as error:
                self._lost_step = error.message
            raise

    def _send(self, kind: Type, data: bytes = b"") -> None:
        try:
            with self._sending:
                self._port.sendall(_HEADER.pack(MAGIC, kind, 0, len(data)) + data)
        except OSError as error:
            raise AgentLostError("the machine's agent port is closed") from error

    def _frame(self, deadline: float) -> tuple[Type, bytes]:
        self._gather(_HEADER.size, deadline, "to answer")
        magic, kind, _, length = _HEADER.unpack_from(self._held)
        if magic != MAGIC or length > 1 << 20 or kind not in Type.__members__.values():
            raise AgentError(
                "the guest agent is out of step", remedy="did the guest restart or write to the agent's port?"
            )
        return Type(kind), self._receive(_HEADER.size + length, deadline, "to go on")[_HEADER.size :]

    def _receive(self, length: int, deadline: float, what: str) -> bytes:
        """Exactly `length` bytes."""
        self._gather(length, deadline, what)
        data = bytes(self._held[:length])
        del self._held[:length]
        return data

    def _gather(self, length: int, deadline: float, what: str) -> None:
        """Holds at least `length` bytes, which the kernel gathers: QEMU passes them on one by one."""
        while len(self._held) < length:
            left = deadline - time.monotonic()
            if left <= 0:
                raise AgentError(f"timed out waiting for the guest agent {what}")
            seconds = min(left, 3600.0)
            timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000) + 1)
            try:
                self._port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
                received = self._port.recv(length - len(self._held), socket.MSG_WAITALL)
            except BlockingIOError:
                continue
            except OSError as error:
                raise AgentLostError("the machine's agent port is closed") from error
            if not received:
                raise AgentLostError("the machine has ended")
            self._held += received


class _Feeder:
    """Sends data in pieces, at most a window ahead of what the guest has taken; an empty piece ends it."""

    def __init__(self, agent: GuestAgent, data: bytes) -> None:
        self._agent = agent
        self._data = memoryview(data)
        self._open = WINDOW
        self._ended = False

    def feed(self) -> None:
        while self._data and self._open >= CHUNK:
            piece, self._data = self._data[:CHUNK], self._data[CHUNK:]
            self._open -= len(piece)
            self._agent._send(Type.DATA, bytes(piece))
        if not self._data and not self._ended:
            self._ended = True
            self._agent._send(Type.DATA)

    def credit(self, data: bytes) -> None:
        self._open += int.from_bytes(data, "little")

    def settle(self, deadline: float) -> None:
        """Takes the credits for what was under way when the command ended."""
        while self._open < WINDOW:
            kind, data = self._agent._frame(deadline)
            if kind is not Type.CREDIT:
                raise AgentError(f"the guest agent sends {kind.name} after a command's end")
            self.credit(data)
