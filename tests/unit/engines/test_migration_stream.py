"""The stream that QEMU gets: a socket with room for what is on its way."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import cast

from iolane.engines.qemu.migration import STREAM, STREAM_BUFFER, OutgoingMigration
from iolane.engines.qemu.migration_settings import MigrationSettings
from iolane.engines.qemu.qmp import Qmp


class FakeQmp:
    """Notes how large the send buffer of a socket is that it is given."""

    def __init__(self) -> None:
        self.room: list[int] = []

    def add_listener(self, *listeners: object) -> object:
        return lambda: None

    def execute(self, command: str, **arguments: object) -> None:
        pass

    def give_descriptor(self, name: str, fd: int) -> None:
        assert name == STREAM
        with socket.fromfd(fd, socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            self.room.append(stream.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))


def test_a_unix_socket_gets_more_room() -> None:
    """As much as the kernel allows (net.core.wmem_max), which doubles what is asked for (socket(7))."""
    qmp, (here, there) = FakeQmp(), socket.socketpair()
    most = int(Path("/proc/sys/net/core/wmem_max").read_text())
    OutgoingMigration(cast(Qmp, qmp), MigrationSettings(), lambda arrived: None).start(here)
    there.close()
    assert here.fileno() == -1, "QEMU has its own"
    assert qmp.room == [2 * min(STREAM_BUFFER, most)]


def test_tcp_finds_its_room_by_itself() -> None:
    qmp = FakeQmp()
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        before = here.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        OutgoingMigration(cast(Qmp, qmp), MigrationSettings(), lambda arrived: None).start(here)
    assert qmp.room == [before]
