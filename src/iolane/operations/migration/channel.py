"""The link between two iolane processes: messages as lines of JSON, each connection begun by what it is for.

A connection's first line says `iolane-migration 1 talk` or `iolane-migration 1 stream TOKEN`. Behind `talk`
come messages, under TLS where there are certificates. Behind `stream` come QEMU's own bytes: the socket is
handed to it, and it does its own TLS.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from iolane.engines.qemu.credentials import TlsCredentials
from iolane.errors import IolaneError
from iolane.operations.migration.link import Link
from iolane.operations.migration.messages import LINE_LIMIT, FromDestination, FromSource
from iolane.operations.migration.tls import secured
from iolane.operations.migration.uri import Place

GREETING = b"iolane-migration 1 "
TALK, STREAM = b"talk", b"stream "
GREETING_LIMIT = 128
CHUNK = 1 << 16
SEND_LIMIT = 20.0
"""Seconds for the other side to take a message; one that takes none is gone."""

Heard = TypeVar("Heard")


class Channel(Generic[Heard]):
    """One link: messages go out by `send`, and come in by calls.

    Args:
        connection: owned by this from here.
        heard: what may come, as a type.
    """

    def __init__(self, connection: socket.socket, heard: object) -> None:
        self._link = Link(connection, SEND_LIMIT)
        self._decoder: msgspec.json.Decoder[Heard] = msgspec.json.Decoder(heard)
        self._reader: threading.Thread | None = None

    def start(self, on_message: Callable[[Heard], object], on_end: Callable[[str], object]) -> None:
        """Call for every message, and once when nothing more will come, with the reason: in a thread of the
        channel's.
        """
        self._reader = threading.Thread(
            target=self._read, args=(on_message, on_end), name="migration link", daemon=True
        )
        self._reader.start()

    def send(self, message: msgspec.Struct) -> None:
        """Say something. To a link that is cut it is lost without a word; its end is told of otherwise."""
        line = msgspec.json.encode(message) + b"\n"
        with contextlib.suppress(OSError, ValueError):
            self._link.send_all(line)

    def close(self) -> None:
        """Cut it, and end the thread (unless that is who calls)."""
        self._link.cut()
        if self._reader is not None and self._reader is not threading.current_thread():
            self._reader.join()
        self._link.close()

    def _read(self, on_message: Callable[[Heard], object], on_end: Callable[[str], object]) -> None:
        reason = "the link is cut"
        lines = io.BufferedReader(self._link, CHUNK)
        try:
            while line := lines.readline(LINE_LIMIT):
                if not line.endswith(b"\n"):
                    reason = "the link is cut" if len(line) < LINE_LIMIT else "a message is too long"
                    break
                on_message(self._decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            reason = f"the other side says what can't be understood: {error}"
        except (OSError, ValueError) as error:
            reason = f"the link is cut: {str(error).lower()}"
        finally:
            lines.detach()  # it would close the link with it
        on_end(reason)


def talk(place: Place, credentials: TlsCredentials | None, timeout: float) -> Channel[FromDestination]:
    """The source's link to a destination. Raises IolaneError."""
    connection = place.connect(timeout)
    try:
        connection.sendall(GREETING + TALK + b"\n")
        if credentials is not None:
            name = place.server_name
            connection = secured(connection, credentials, server=False, server_name=name)
    except OSError as error:
        connection.close()
        raise IolaneError(f"{place}: {str(error).lower()}") from error
    except BaseException:
        connection.close()
        raise
    return Channel(connection, FromDestination)


def stream(place: Place, token: str, timeout: float) -> socket.socket:
    """The source's connection for QEMU's bytes. Raises IolaneError."""
    connection = place.connect(timeout)
    try:
        connection.sendall(GREETING + STREAM + token.encode() + b"\n")
    except OSError as error:
        connection.close()
        raise IolaneError(f"{place}: {str(error).lower()}") from error
    connection.settimeout(None)
    return connection


def greeting(connection: socket.socket) -> str | None:
    """At the destination: what a connection is for. A token, or an empty string for talk; None: nonsense."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = connection.recv(1)  # what follows is not ours to read
        if not byte or len(line) >= GREETING_LIMIT:
            return None
        line += byte
    if not line.startswith(GREETING):
        return None
    rest = bytes(line[len(GREETING) : -1])
    if rest == TALK:
        return ""
    if rest.startswith(STREAM):
        token = rest[len(STREAM) :].decode("ascii", "replace")
        return token or None
    return None


def answer(connection: socket.socket, credentials: TlsCredentials | None) -> Channel[FromSource]:
    """The destination's end of a connection that is for talk. Raises IolaneError."""
    if credentials is not None:
        connection = secured(connection, credentials, server=True)
    return Channel(connection, FromSource)
