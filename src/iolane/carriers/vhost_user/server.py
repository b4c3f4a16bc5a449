"""A virtio device served to one front end after another."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from iolane.carriers.server import Event, EventKind, SocketServer
from iolane.carriers.vhost_user.choice import chosen_plane
from iolane.carriers.vhost_user.connection import Connection
from iolane.carriers.vhost_user.plane import DataPlane
from iolane.carriers.vhost_user.rejection import Statistics
from iolane.carriers.vhost_user.written_config import WrittenConfig
from iolane.memory.signals import Signaller
from iolane.model.virtio import VirtioDevice
from iolane.model.workers import Workers

__all__ = ["Event", "EventKind", "VhostUserServer"]


class VhostUserServer(SocketServer[Connection, Statistics]):
    """Serves `device` at `path`: one front end at a time, each on the server's one thread, the next after it.

    Args:
        device: attached to `workers` by `start`, detached by `stop`.
        path: of the Unix socket. QEMU connects when the device is realized: start the server before, or give
            the chardev `reconnect-ms`.
        workers: threads for the device's tasks and timers; without them tasks run in the handler and time
            stands still.
        plane: makes what serves the rings of a connection; by default what IOLANE_DATAPLANE says.
        mode: of the socket's file, who may connect.
    """

    protocol = "vhost-user"

    def __init__(
        self,
        device: VirtioDevice,
        path: str | os.PathLike[str],
        *,
        workers: Workers | None = None,
        plane: Callable[[VirtioDevice], DataPlane] | None = None,
        mode: int = 0o600,
    ) -> None:
        super().__init__(device, path, workers=workers, mode=mode)
        self.device = device
        self._plane = plane or chosen_plane()
        self._written = WrittenConfig()
        self._signaller = Signaller()

    def _attached(self) -> None:
        self._signaller.open()

    def stop(self) -> None:
        """See `SocketServer.stop`."""
        super().stop()
        self._signaller.close()

    def _no_counts(self) -> Statistics:
        return Statistics()

    def _counts_of(self, connection: Connection) -> Statistics:
        return connection.statistics

    def _connect(self, accepted: socket.socket) -> Connection:
        plane = self._plane(self.device)
        return Connection(
            accepted, self.device, plane, self._written, self._signaller, on_negotiated=self._greet
        )
