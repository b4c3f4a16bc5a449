"""Keeps QEMU alive when a device server is killed in the middle of its work.

A Unix socket that is closed with unread data answers its peer with ECONNRESET instead of the end of the file,
and on that QEMU aborts the whole machine (11.1.3: `error_setv: Assertion '*errp == NULL'`). So we hold a
second descriptor of the server's end of each connection. When the server has died, we take what it left
unread and close: QEMU sees the end of the file, and the guest a dead device.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

from iolane.engines.qemu.descriptors import peer_path, peer_pid, unix_sockets


@dataclass
class _Held:
    """One server's end of a connection."""

    connection: socket.socket
    pidfd: int
    server: int
    number: int
    link: str

    def abandoned(self) -> bool:
        """Whether the server, alive, has closed its own descriptor."""
        try:
            return os.readlink(f"/proc/{self.server}/fd/{self.number}") != self.link
        except OSError:
            return True

    def end(self) -> None:
        """The end of the file for QEMU, after everything unread is taken."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)  # from now on nothing is added
            self.connection.setblocking(False)
            while self.connection.recv(1 << 16):
                pass
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.let_go()

    def let_go(self) -> None:
        self.connection.close()
        os.close(self.pidfd)


class ServerGuard:
    """Watches the servers of one QEMU process. Servers in our own process need no guard: they die with us, as
    QEMU does. A server that may not be traced (another user's) goes without."""

    def __init__(self, qemu: int) -> None:
        self._qemu = qemu
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="device server guard", daemon=True)
        self._thread.start()

    def watch(self, identity: str, path: Path) -> bool:
        """Guards the connection to the server at `path`; whether that is possible."""
        self.forget(identity)
        held = self._find(os.path.abspath(path))
        if held is None:
            return False
        with self._lock:
            self._held[identity] = held
        os.eventfd_write(self._wake, 1)
        return True

    def forget(self, identity: str) -> None:
        """The device is unplugged."""
        with self._lock:
            held = self._held.pop(identity, None)
            if held is not None:
                held.let_go()

    def release_abandoned(self) -> None:
        """Ends the connections that their servers have closed without dying: only we hold them open."""
        with self._lock:
            for identity in [identity for identity, held in self._held.items() if held.abandoned()]:
                self._held.pop(identity).end()

    def close(self) -> None:
        """Ends the thread and lets go of all."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for identity in list(self._held):
            self.forget(identity)
        os.close(self._wake)

    def _find(self, path: str) -> _Held | None:
        servers = {peer_pid(end) for _, end in unix_sockets(self._qemu) if peer_path(end) == path}
        for server in servers - {os.getpid(), 0}:
            for number, end in unix_sockets(server):
                if end.getsockname() and os.path.abspath(end.getsockname()) == path and self._is_ours(end):
                    link = os.readlink(f"/proc/self/fd/{end.fileno()}")
                    return _Held(end.dup(), os.pidfd_open(server), server, number, link)
        return None

    def _is_ours(self, end: socket.socket) -> bool:
        listening = end.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return not listening and peer_pid(end) == self._qemu

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    return
                # a forgotten pidfd may be closed while we wait: what is reported is looked up again below
                watched = {held.pidfd: identity for identity, held in self._held.items()}
            poll = select.poll()
            for fd in (self._wake, *watched):
                poll.register(fd, select.POLLIN)
            ready = [fd for fd, _ in poll.poll()]
            if self._wake in ready:
                os.eventfd_read(self._wake)
            with self._lock:
                for identity in {watched[fd] for fd in ready if fd in watched}:
                    held = self._held.get(identity)
                    if held is not None and _has_ended(held.pidfd):
                        self._held.pop(identity).end()


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
