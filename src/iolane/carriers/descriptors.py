"""File descriptors that go along with bytes over a Unix stream socket."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
from collections.abc import Sequence
from enum import StrEnum

from iolane.errors import IolaneError

LARGEST_READ = 1 << 16
DESCRIPTOR_SIZE = array.array("i").itemsize


class SignalKind(StrEnum):
    """What a descriptor that carries signals is."""

    EVENTFD = "eventfd"
    PIPE = "pipe"
    SOCKET = "socket"


SIGNAL_KINDS = {"pipe": SignalKind.PIPE, "socket": SignalKind.SOCKET}
"""By what /proc calls them."""


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that a peer sent and nobody took."""
    for fd in fds:
        os.close(fd)


def descriptors_in(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that `recvmsg` brought."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % DESCRIPTOR_SIZE])
    return fds.tolist()


def send_message(connection: socket.socket, message: bytes, fds: Sequence[int] = ()) -> None:
    """Send a whole message; its descriptors go with the first byte, in one `sendmsg`."""
    sent = 0
    if fds:
        sent = socket.send_fds(connection, [message], list(fds))
    if sent < len(message):
        connection.sendall(memoryview(message)[sent:])


def prepare_signal(fd: int, *kinds: SignalKind) -> SignalKind:
    """Make a peer's eventfd (or what else is among `kinds`) safe to read and write.

    It is set to never block, but the peer may clear that again: `iolane.memory.signals` does not wait even
    then. A pipe is opened anew, so that its flags are ours alone.

    Raises:
        IolaneError: it is something else; reading or writing it might block, or do anything.
    """
    try:
        target = os.readlink(f"/proc/self/fd/{fd}")
        kind = SIGNAL_KINDS.get(target.partition(":[")[0] if target.endswith("]") else "")
        kind = SignalKind.EVENTFD if target == "anon_inode:[eventfd]" else kind
        if kind is None or kind not in kinds:
            raise IolaneError(f"this descriptor must be {' or '.join(kinds)}, not {target}")
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        if kind is SignalKind.PIPE:
            _open_anew(fd, flags & os.O_ACCMODE)
        else:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    except OSError as error:
        raise IolaneError(f"this descriptor cannot be used: {error.strerror}") from error
    return kind


def _open_anew(fd: int, mode: int) -> None:
    own = os.open(f"/proc/self/fd/{fd}", mode | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.dup2(own, fd, inheritable=False)
    finally:
        os.close(own)


def close_after_reading(connection: socket.socket) -> None:
    """Close a socket so that the peer sees an end of file.

    A Unix socket that is closed while it holds unread bytes gives its peer ECONNRESET instead (unix(7)),
    which QEMU 11's vfio-user client answers by aborting. So no more is taken, and what is there is thrown
    away, first.
    """
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
        connection.setblocking(False)
        while connection.recv(LARGEST_READ):
            pass
    connection.close()
