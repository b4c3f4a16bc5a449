"""A machine on the control socket: streams of messages, and the connection that becomes its console."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Protocol

import msgspec

from iolane.carriers.control.machine_messages import MachineReport, MachineRequest, MachineStream
from iolane.carriers.control.mailbox import Mailbox
from iolane.carriers.control.messages import Done

STREAM_LIMIT = 4096
"""Messages that wait for a slow reader; more are dropped."""
CONSOLE_LIMIT = 2 << 20
"""Bytes of a console that wait for a slow reader; more are dropped, and it is told how many."""
TYPED_LIMIT = 4096
"""Bytes that are taken from a watcher before the guest has taken those before."""
_encoder = msgspec.json.Encoder()


class ControlledConsole(Protocol):
    """A guest's console."""

    def watch(
        self,
        listener: Callable[[bytes], object] | None,
        at_end: Callable[[], object] | None = None,
        *,
        replay: bool = True,
    ) -> Callable[[], None]:
        """Have `listener` get what it shows, until the returned call."""

    def type(self, data: bytes) -> int:
        """Type what the guest takes now; how many bytes."""

    def fileno(self) -> int:
        """Writable when the guest takes more."""


class ControlledMachine(Protocol):
    """What the control socket needs of a machine."""

    def report(self) -> MachineReport:
        """The machine as it is now."""

    def console(self) -> ControlledConsole:
        """Its console."""

    def perform(self, request: MachineRequest) -> msgspec.Struct:
        """One request, one reply."""

    def follow(
        self, request: MachineStream, take: Callable[[msgspec.Struct | None], None]
    ) -> Callable[[], None]:
        """Have `take`, which does not wait, get messages, the last of them None; until the returned call."""


def follow_machine(connection: socket.socket, machine: ControlledMachine, request: MachineStream) -> None:
    """Send the messages of a stream until they end or the peer closes."""
    mailbox: Mailbox[bytes] = Mailbox(STREAM_LIMIT)

    def take(message: msgspec.Struct | None) -> None:
        mailbox.end() if message is None else mailbox.put(_encoder.encode(message) + b"\n")

    stop = machine.follow(request, take)
    try:
        connection.sendall(_encoder.encode(Done()) + b"\n")
        while not mailbox.ended and mailbox.wait(connection):
            messages, _ = mailbox.take()
            connection.sendall(b"".join(messages))
    finally:
        stop()
        mailbox.close()


def serve_console(connection: socket.socket, console: ControlledConsole, *, replay: bool) -> None:
    """Be the console, raw in both directions, until the machine ends or the peer closes.

    What the guest does not take is not taken from the peer either.
    """
    mailbox: Mailbox[bytes] = Mailbox(CONSOLE_LIMIT, by_size=True)
    connection.sendall(_encoder.encode(Done()) + b"\n")
    stop = console.watch(mailbox.put, mailbox.end, replay=replay)
    try:
        typed = b""
        while not mailbox.ended:
            poll = select.poll()
            poll.register(mailbox, select.POLLIN)
            poll.register(connection, select.POLLRDHUP | (0 if typed else select.POLLIN))
            if typed:
                poll.register(console, select.POLLOUT)
            ready = dict(poll.poll())
            seen = ready.get(connection.fileno(), 0)
            if seen & select.POLLIN:
                typed = connection.recv(TYPED_LIMIT)
            if seen & (select.POLLHUP | select.POLLERR) or (seen & select.POLLRDHUP and not typed):
                return
            if typed:
                typed = typed[console.type(typed) :]
            shown, lost = mailbox.take()
            if lost:
                shown.append(b"\r\n(%d bytes not shown: too many at once)\r\n" % lost)
            connection.sendall(b"".join(shown))
    finally:
        stop()
        mailbox.close()
