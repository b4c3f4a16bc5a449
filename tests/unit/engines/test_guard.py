"""This process plays QEMU: it is connected to a device server, which gets killed."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iolane.engines.qemu.guard import ServerGuard

SERVER = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
connection, _ = listener.accept()
print("accepted", flush=True)
sys.stdin.readline()
connection.close()
print("closed", flush=True)
sys.stdin.readline()
"""


@contextmanager
def connected(path: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    with (
        subprocess.Popen(
            [sys.executable, "-c", SERVER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as server,
        socket.socket(socket.AF_UNIX) as client,
    ):
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        client.settimeout(10)
        client.connect(str(path))
        assert server.stdout.readline() == b"accepted\n"
        yield server, client
        server.kill()


def test_what_happens_without(tmp_path: Path) -> None:
    with connected(tmp_path / "s") as (server, client):
        client.sendall(b"a request that stays unread")
        server.kill()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_killed_server_is_an_end_of_file(tmp_path: Path) -> None:
    guard = ServerGuard(os.getpid())
    with connected(tmp_path / "s") as (server, client):
        assert guard.watch("device", tmp_path / "s")
        client.sendall(b"a request that stays unread")
        server.kill()
        assert client.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            client.sendall(b"more")
    guard.close()


def test_a_connection_that_only_we_hold_is_released(tmp_path: Path) -> None:
    guard = ServerGuard(os.getpid())
    with connected(tmp_path / "s") as (server, client):
        assert guard.watch("device", tmp_path / "s")
        assert server.stdin is not None
        assert server.stdout is not None
        guard.release_abandoned()
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)  # the server still has it
        server.stdin.write(b"\n")
        server.stdin.flush()
        assert server.stdout.readline() == b"closed\n"
        guard.release_abandoned()
        client.settimeout(10)
        assert client.recv(1) == b""
    guard.close()


def test_unplugging_lets_go(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    guard = ServerGuard(os.getpid())
    with connected(tmp_path / "s"):
        assert guard.watch("device", tmp_path / "s")
        assert guard.watch("device", tmp_path / "s")  # plugged again
        guard.forget("device")
        guard.forget("device")
    guard.close()
    guard.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_nothing_to_guard(tmp_path: Path) -> None:
    guard = ServerGuard(os.getpid())
    assert not guard.watch("device", tmp_path / "nobody")
    guard.close()
