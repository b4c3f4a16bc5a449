"""Sockets of other processes, borrowed (pidfd_getfd(2)); the processes must be ours to trace."""

from __future__ import annotations

import ctypes
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

_SYS_PIDFD_GETFD = 438


def unix_sockets(pid: int) -> Iterator[tuple[int, socket.socket]]:
    """The Unix sockets of process `pid`, with their descriptor numbers there. Each is closed when the next is
    asked for: duplicate what is to be kept. Nothing where the process is gone or may not be traced."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        for number in _socket_numbers(pid):
            borrowed = _pidfd_getfd(pidfd, number)
            if borrowed < 0:
                continue
            with socket.socket(fileno=borrowed) as found:
                if found.family == socket.AF_UNIX:
                    yield number, found
    finally:
        os.close(pidfd)


def connected_peers(pid: int) -> set[str]:
    """The paths of the sockets that process `pid` is connected to, without those hung up."""
    return {path for _, found in unix_sockets(pid) if (path := peer_path(found)) and not hung_up(found)}


def peer_path(connection: socket.socket) -> str:
    """The path its peer is bound to, absolute; empty if there is none."""
    try:
        name = connection.getpeername()
    except OSError:
        return ""
    return os.path.abspath(name) if isinstance(name, str) and name else ""


def hung_up(connection: socket.socket) -> bool:
    """Whether the other end is closed."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def peer_pid(connection: socket.socket) -> int:
    """The process at the other end: who connected, or who listened (unix(7), SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], "little")


def _socket_numbers(pid: int) -> list[int]:
    numbers = []
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.readlink(entry).startswith("socket:"):
                    numbers.append(int(entry.name))
            except OSError:
                continue  # closed meanwhile
    except OSError:
        return []
    return numbers


def _pidfd_getfd(pidfd: int, fd: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(ctypes.c_long(_SYS_PIDFD_GETFD), pidfd, fd, 0))
