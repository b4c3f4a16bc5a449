"""A device served to one client after another."""

from __future__ import annotations

import os
import resource
import socket

from iolane.carriers.server import Event, EventKind, SocketServer
from iolane.carriers.vfio_user.connection import Connection
from iolane.carriers.vfio_user.rejection import Statistics
from iolane.model.interrupts import InterruptIndex, TableOwner
from iolane.model.pci import ServedFunction, VirtualFunction
from iolane.model.workers import Workers

__all__ = ["FDS_BESIDE_VECTORS", "Event", "EventKind", "VfioUserServer"]

FDS_BESIDE_VECTORS = 256
"""Descriptors that a process needs beside one eventfd a vector: sockets, memory files, back ends."""


class VfioUserServer(SocketServer[Connection, Statistics]):
    """Serves `device` at `path`: one client at a time, each on the server's one thread, the next after it.

    The device's state survives a client; its memory and eventfds do not ("Client Disconnection").

    Args:
        device: attached to `workers` by `start`, detached by `stop`.
        path: of the Unix socket. QEMU connects once, when the device is realized: start the server before.
        workers: threads for the device's tasks and timers; without them tasks run in the handler and
            time stands still.
        mode: of the socket's file, who may connect.
    """

    protocol = "vfio-user"

    def __init__(
        self,
        device: ServedFunction,
        path: str | os.PathLike[str],
        *,
        workers: Workers | None = None,
        mode: int = 0o600,
    ) -> None:
        super().__init__(device, path, workers=workers, mode=mode)
        self.device = device

    def _no_counts(self) -> Statistics:
        return Statistics()

    def _counts_of(self, connection: Connection) -> Statistics:
        return connection.statistics

    def _connect(self, accepted: socket.socket) -> Connection:
        return Connection(accepted, self.device, on_negotiated=self._greet)

    def _prepare(self) -> None:
        """Each vector is an eventfd of the client; the usual soft limit of 1024 is below MSI-X's 2048."""
        vectors = sum(self.device.interrupts.group(index).count for index in InterruptIndex)
        wanted = vectors + FDS_BESIDE_VECTORS
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return
        reachable = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
        if reachable < wanted:
            self._tell(
                EventKind.WARNING,
                f"{vectors} vectors may need {wanted} descriptors, the limit is {hard} (ulimit -Hn {wanted})",
            )

    def _attached(self) -> None:
        with self.device.lock:
            self.device.interrupts.table_owner = TableOwner.CARRIER
            if isinstance(self.device, VirtualFunction):
                self.device.memory_shown = True  # QEMU maps BARs by what the guest writes to COMMAND
