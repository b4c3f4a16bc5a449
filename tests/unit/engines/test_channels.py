import os
import pty
import socket
import struct
import termios
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.engines.qemu.agent import (
    MAGIC,
    MARKER,
    WINDOW,
    AgentError,
    AgentLostError,
    CommandFailedError,
    GuestAgent,
    Type,
)
from iolane.engines.qemu.console import Console
from iolane.engines.qemu.terminal import interact
from iolane.errors import IolaneError


class Guest:
    """The guest's side of the agent's port, played by hand."""

    def __init__(self, port: socket.socket) -> None:
        self.port = port
        port.settimeout(10)

    def send(self, kind: Type, data: bytes = b"") -> None:
        self.port.sendall(struct.pack("<BBHI", MAGIC, kind, 0, len(data)) + data)

    def receive(self) -> tuple[Type, bytes]:
        _, kind, _, length = struct.unpack("<BBHI", self._exactly(8))
        return Type(kind), self._exactly(length)

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            data += self.port.recv(length - len(data))
        return data


@pytest.fixture
def ends() -> Iterator[tuple[GuestAgent, Guest]]:
    ours, guests = socket.socketpair()
    with ours, guests:
        yield GuestAgent(ours), Guest(guests)


def test_hello_behind_noise(ends: tuple[GuestAgent, Guest]) -> None:
    agent, guest = ends
    guest.port.sendall(b"\xff\x00 noise \n#iolane" + MARKER)
    guest.send(Type.HELLO, struct.pack("<I", 1) + b"6.1.0")
    agent.wait_hello(5.0)
    assert agent.release == "6.1.0"


def test_another_version_is_refused(ends: tuple[GuestAgent, Guest]) -> None:
    agent, guest = ends
    guest.port.sendall(MARKER)
    guest.send(Type.HELLO, struct.pack("<I", 2))
    with pytest.raises(AgentError, match="version 2"):
        agent.wait_hello(5.0)


def test_silence_and_the_end(ends: tuple[GuestAgent, Guest]) -> None:
    agent, guest = ends
    with pytest.raises(AgentError, match="timed out"):
        agent.wait_hello(0.05)
    guest.port.close()
    with pytest.raises(AgentLostError):
        agent.wait_hello(5.0)
    with pytest.raises(AgentLostError):
        agent.run("true")


def test_a_command(ends: tuple[GuestAgent, Guest]) -> None:
    agent, guest = ends

    def play() -> None:
        kind, data = guest.receive()
        assert (kind, data[8:]) == (Type.RUN, b"a 'b c'")
        assert guest.receive() == (Type.DATA, b"")
        guest.send(Type.STDOUT, b"one\n\xff")
        guest.send(Type.STDERR, b"two\n")
        guest.send(Type.EXIT, struct.pack("<iI", 3, 0))

    player = threading.Thread(target=play)
    player.start()
    result = agent.run(["a", "b c"])
    player.join()
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"one\n\xff", b"two\n")
    assert not result.timed_out
    with pytest.raises(CommandFailedError, match=r"exit code 3.*two"):
        result.check()


def test_no_more_than_a_window_is_under_way(ends: tuple[GuestAgent, Guest]) -> None:
    agent, guest = ends
    data = bytes(range(256)) * 200
    overrun = []

    def play() -> None:
        assert guest.receive()[0] is Type.PUSH
        taken = b""
        unacknowledged = 0
        while True:
            kind, piece = guest.receive()
            assert kind is Type.DATA
            if not piece:
                break
            unacknowledged += len(piece)
            taken += piece
            overrun.append(unacknowledged > WINDOW)
            if unacknowledged >= WINDOW - 2048:
                guest.send(Type.CREDIT, struct.pack("<I", unacknowledged))
                unacknowledged = 0
        guest.send(Type.CREDIT, struct.pack("<I", unacknowledged))
        guest.send(Type.RESULT, struct.pack("<iIQ", 0, zlib.crc32(taken), len(taken)))

    player = threading.Thread(target=play)
    player.start()
    agent.push("/file", data)
    player.join()
    assert not any(overrun)


def test_damage_is_noticed(ends: tuple[GuestAgent, Guest]) -> None:
    agent, guest = ends
    guest.send(Type.CONTENT, b"content")
    guest.send(Type.RESULT, struct.pack("<iIQ", 0, zlib.crc32(b"other"), 7))
    with pytest.raises(AgentError, match="damaged"):
        agent.pull("/file")
    guest.send(Type.RESULT, struct.pack("<iIQ", 2, 0, 0))
    with pytest.raises(IolaneError, match="No such file"):
        agent.pull("/file")
    guest.port.sendall(b"garbage that is no frame")
    with pytest.raises(AgentError, match="out of step"):
        agent.pull("/file")
    with pytest.raises(AgentError, match=r"lost step.*reset the machine"):
        agent.pull("/file")


def test_a_command_that_cannot_be_sent(ends: tuple[GuestAgent, Guest]) -> None:
    for command in ("a\0b", "x" * 20000):
        with pytest.raises(IolaneError, match="16000"):
            ends[0].run(command)


def test_console(tmp_path: Path) -> None:
    ours, guests = socket.socketpair()
    console = Console(ours, tmp_path / "console.log")
    heard: list[bytes] = []
    guests.sendall(b"early\r\n")
    position = console.wait_for("early", 5.0)
    console.attach(heard.append)
    for byte in b"login: ":
        guests.sendall(bytes([byte]))
    position = console.wait_for(r"login: $", 5.0, position)
    console.write(b"root\n")
    assert guests.recv(10) == b"root\n"
    with pytest.raises(IolaneError, match="not within"):
        console.wait_for("login", 0.01, position)
    guests.close()
    with pytest.raises(IolaneError, match="ended"):
        console.wait_for("more", 5.0)
    console.close()
    assert b"".join(heard) == b"early\r\nlogin: "
    assert (tmp_path / "console.log").read_bytes() == b"early\r\nlogin: "
    assert console.tail() == "early\nlogin:"


def test_a_terminal_on_the_console(tmp_path: Path) -> None:
    ours, guests = socket.socketpair()
    console = Console(ours, tmp_path / "console.log")
    guests.sendall(b"welcome ")
    console.wait_for("welcome ", 5.0)
    keyboard, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    shown: list[bytes] = []
    connected = threading.Event()

    def show(data: bytes) -> None:
        shown.append(data)
        connected.set()  # the terminal is in raw mode by now

    user = threading.Thread(target=interact, args=(console, terminal, show))
    user.start()
    assert connected.wait(5.0)
    os.write(keyboard, b"ls\x03")  # Ctrl-C is the guest's
    assert guests.recv(2, socket.MSG_WAITALL) == b"ls"
    assert guests.recv(1) == b"\x03"
    guests.sendall(b"file")
    console.wait_for("file", 5.0)
    os.write(keyboard, b"\x1d")
    user.join(5.0)
    assert not user.is_alive()
    assert termios.tcgetattr(terminal) == before
    user = threading.Thread(target=interact, args=(console, terminal, lambda data: None))
    user.start()
    guests.close()  # the machine ends
    user.join(5.0)
    assert not user.is_alive()
    console.close()
    assert b"".join(shown).startswith(b"welcome ")
    os.close(keyboard)
    os.close(terminal)
