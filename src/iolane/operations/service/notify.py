"""sd_notify(3): telling a service manager what this process is doing, and being the manager who is told.

The protocol: datagrams of `VARIABLE=value` lines to the socket that `NOTIFY_SOCKET` names.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from types import TracebackType

from iolane.errors import IolaneError

CREDENTIALS = struct.Struct("3i")
"""struct ucred: process, user, group (unix(7))."""
LONGEST_MESSAGE = 4096
LONGEST_ADDRESS = 107
"""Bytes of sun_path without its NUL, the NUL before an abstract name included (unix(7))."""


class Notifier:
    """Tells the service manager; without one every call does nothing.

    Args:
        address: `NOTIFY_SOCKET`: a path, or `@name` of the abstract namespace; None for no manager.
        watchdog: seconds within which the manager wants to hear of this process, again and again; None: it
            does not ask.
    """

    def __init__(self, address: str | None = None, *, watchdog: float | None = None) -> None:
        self.watchdog = watchdog
        self._socket: socket.socket | None = None
        if address is None:
            return
        target = _socket_address(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(target)
        except OSError as error:
            self._socket.close()
            raise IolaneError(
                f"NOTIFY_SOCKET={address}: {(error.strerror or str(error)).lower()}",
                remedy="unset NOTIFY_SOCKET to start without a service manager",
            ) from None

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str], *, inherited: bool = True) -> Notifier:
        """The manager that the environment names. Its variables are taken out: children are not meant.

        Args:
            environment: of the process.
            inherited: whether this is the process that the manager started. A daemon is not, so
                `WATCHDOG_PID`, which names that one (sd_watchdog_enabled(3)), can't be held against it.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        interval = environment.pop("WATCHDOG_USEC", "")
        meant = environment.pop("WATCHDOG_PID", "")
        asked = bool(address and interval) and not (inherited and meant and meant != str(os.getpid()))
        return cls(address or None, watchdog=_seconds(interval) if asked else None)

    @property
    def present(self) -> bool:
        """Whether there is a manager."""
        return self._socket is not None

    def ready(self, status: str) -> None:
        """The start is over. `MAINPID` says who serves, which after a daemon's forks is not obvious."""
        self.tell({"READY": "1", "MAINPID": str(os.getpid()), "STATUS": status})

    def status(self, text: str) -> None:
        """One line on what it does now."""
        self.tell({"STATUS": text})

    def stopping(self) -> None:
        """It has begun to end."""
        self.tell({"STOPPING": "1", "STATUS": "ending"})

    def alive(self) -> None:
        """It is well: the manager's watchdog starts anew."""
        self.tell({"WATCHDOG": "1"})

    def tell(self, variables: Mapping[str, str]) -> None:
        """Send the variables. A manager that went away or does not read is no reason to fail, or to wait."""
        if self._socket is None:
            return
        lines = [f"{name}={' '.join(value.split())}" for name, value in variables.items()]
        try:
            self._socket.send("\n".join(lines).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return

    def close(self) -> None:
        """Tell no more; again does nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Notifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class NotifyListener:
    """The manager's side: a socket that processes we started tell. Datagrams of others are not heard.

    Args:
        path: of the socket, in a folder of ours alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._socket.setblocking(False)
            self._socket.bind(os.fspath(path))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._socket.fileno()

    def receive(self, sender: int) -> dict[str, str] | None:
        """What process `sender` said in one datagram; empty for another's, None when there is none."""
        try:
            data, ancillary, _, _ = self._socket.recvmsg(LONGEST_MESSAGE, socket.CMSG_SPACE(CREDENTIALS.size))
        except BlockingIOError:
            return None
        senders = [
            CREDENTIALS.unpack(value[: CREDENTIALS.size])[0]
            for level, kind, value in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
        ]
        return parse(data) if senders == [sender] else {}

    def close(self) -> None:
        """Hear no more, and remove the socket."""
        self._socket.close()
        self.path.unlink(missing_ok=True)


def parse(message: bytes) -> dict[str, str]:
    """The variables of a datagram; lines that are none are left out.

    >>> parse(b"READY=1\\nSTATUS=on the way")
    {'READY': '1', 'STATUS': 'on the way'}
    """
    lines = [line.partition("=") for line in message.decode(errors="replace").split("\n")]
    return {name: value for name, equals, value in lines if name and equals}


def _socket_address(address: str) -> str | bytes:
    if address.startswith("@"):
        target: str | bytes = b"\0" + os.fsencode(address[1:])
    elif address.startswith("/"):
        target = address
    else:
        raise IolaneError(
            f"NOTIFY_SOCKET={address} is neither an absolute path nor @NAME",
            remedy="unset NOTIFY_SOCKET to start without a service manager",
        )
    if len(os.fsencode(address)) > LONGEST_ADDRESS:
        raise IolaneError(f"NOTIFY_SOCKET is longer than {LONGEST_ADDRESS} bytes")
    return target


def _seconds(microseconds: str) -> float:
    if not microseconds.isascii() or not microseconds.isdecimal() or not 0 < int(microseconds) < 1 << 63:
        raise IolaneError(f"WATCHDOG_USEC={microseconds} is no number of microseconds")
    return int(microseconds) / 1e6
