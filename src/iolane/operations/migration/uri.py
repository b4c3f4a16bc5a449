"""Where a machine goes to: `unix:PATH` or `tcp:HOST:PORT`."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from iolane.carriers.control import check_socket_path
from iolane.carriers.control.runtime import is_served
from iolane.errors import IolaneError

FORMS = "unix:PATH or tcp:HOST:PORT"
BACKLOG = 64
KEEPALIVE = {
    socket.TCP_KEEPIDLE: 5,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 4,
    socket.TCP_USER_TIMEOUT: 30_000,
    socket.TCP_NODELAY: 1,
}
"""A host that has gone is noticed within half a minute."""


@dataclass(frozen=True)
class Place:
    """A unix socket (`path`), or a port of a host."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    @property
    def server_name(self) -> str:
        """What its certificate must be for."""
        return self.host or "localhost"

    def connect(self, timeout: float) -> socket.socket:
        """A connection to it. Raises IolaneError."""
        try:
            if self.path is None:
                connection = socket.create_connection((self.host, self.port), timeout)
            else:
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    limit_sending(connection, timeout)  # also waits for room in a crowded backlog (unix(7))
                    connection.connect(os.fspath(self.path))
                    connection.settimeout(timeout)
                except BaseException:
                    connection.close()
                    raise
        except OSError as error:
            raise IolaneError(
                f"nobody receives at {self}: {(error.strerror or str(error)).lower()}",
                remedy=f"start it there: iolane receive {self}",
            ) from error
        prepare(connection)
        return connection

    def listen(self) -> socket.socket:
        """A listening socket, of ours alone where it is a path. Raises IolaneError."""
        try:
            if self.path is None:
                return socket.create_server(
                    (self.host, self.port),
                    family=socket.AF_INET6 if ":" in self.host else socket.AF_INET,
                    backlog=BACKLOG,
                )
            return _listen_at(check_socket_path(self.path))
        except OSError as error:
            raise IolaneError(f"{self}: {(error.strerror or str(error)).lower()}") from error

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


def _listen_at(path: Path) -> socket.socket:
    if path.is_socket():
        if is_served(path):
            raise IolaneError(f"somebody else listens at {path}")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o077)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def limit_sending(connection: socket.socket, seconds: float) -> None:
    """SO_SNDTIMEO: connecting and sending give up in time, reading waits (socket(7))."""
    value = int(seconds).to_bytes(8, "little") + int(seconds % 1 * 1e6).to_bytes(8, "little")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def prepare(connection: socket.socket) -> None:
    """What every connection between two hosts gets."""
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def parse_place(text: str) -> Place:
    """Raises IolaneError in one line that quotes the argument.

    >>> str(parse_place("tcp:[::1]:4444"))
    'tcp:[::1]:4444'
    """
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        return Place(path=Path(rest).expanduser().absolute())
    host, _, port = rest.rpartition(":")
    if kind == "tcp" and host and port.isdecimal() and port.isascii() and 0 < int(port) < 1 << 16:
        bracketed = host.startswith("[") and host.endswith("]")
        if bracketed or ":" not in host:
            return Place(host=host[1:-1] if bracketed else host, port=int(port))
    raise IolaneError(f"'{text}' names no place that a machine can go to", remedy=FORMS)
