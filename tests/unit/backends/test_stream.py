"""Byte streams: pull and notice, back-pressure, peers that leave and come back, drops counted."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iolane import IolaneError
from iolane.backends.stream import (
    DescriptorPair,
    FileStream,
    MemoryStream,
    PtyStream,
    SocketStream,
    StreamBackend,
    open_stream,
)

FORMS = "listen:PATH, unix:PATH, pty[:LINK], file:PATH, fd:N[:M], memory or null"
SECONDS = 10.0


class Puller:
    """What a device does with a stream: under one lock, reads when it has room and writes what it has."""

    def __init__(self, stream: StreamBackend, *, room: int = 16) -> None:
        self.stream = stream
        self.changed = threading.Condition(threading.RLock())
        self.received = bytearray()
        self.output = bytearray()
        self.room = room
        with self.changed:
            stream.start(self.notified)

    def notified(self) -> None:
        with self.changed:
            self.stream.service()
            self.pull()
            self.changed.notify_all()

    def pull(self) -> None:
        while data := self.stream.read(self.room):
            self.received += data
        while self.output:
            count = self.stream.write(bytes(self.output[:16]))
            del self.output[:count]
            if not count:
                break

    def send(self, data: bytes) -> None:
        with self.changed:
            self.output += data
            self.pull()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, SECONDS)

    def close(self) -> None:
        with self.changed:
            self.stream.close()


@pytest.fixture
def pullers() -> Iterator[Callable[[StreamBackend], Puller]]:
    made: list[Puller] = []
    descriptors = len(os.listdir("/proc/self/fd"))

    def make(stream: StreamBackend) -> Puller:
        made.append(Puller(stream))
        return made[-1]

    yield make
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("iolane-")]
    for puller in made:
        puller.close()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def receive(peer: socket.socket, count: int) -> bytes:
    peer.settimeout(SECONDS)
    data = bytearray()
    while len(data) < count and (part := peer.recv(count - len(data))):
        data += part
    return bytes(data)


Make = Callable[[StreamBackend], Puller]


def test_socket_both_ways_and_back_again(tmp_path: Path, pullers: Make) -> None:
    stream = SocketStream(tmp_path / "line")
    puller = pullers(stream)
    puller.send(b"nobody hears this")
    assert stream.bytes_dropped == 17
    for login in (b"root\n", b"somebody\n"):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(tmp_path / "line"))
            puller.wait(lambda: stream.connected)
            puller.send(b"login: ")
            assert receive(peer, 7) == b"login: "
            peer.sendall(login)
            puller.wait(lambda: puller.received.endswith(b"\n"))
            assert bytes(puller.received) == login
            puller.received.clear()
        puller.wait(lambda: not stream.connected)
    assert stream.connections == 2
    puller.close()
    assert not (tmp_path / "line").exists()


def test_what_was_sent_before_hanging_up_arrives(tmp_path: Path, pullers: Make) -> None:
    stream = SocketStream(tmp_path / "line")
    puller = pullers(stream)
    data = os.urandom(100_000)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(tmp_path / "line"))
        peer.sendall(data)
    puller.wait(lambda: len(puller.received) == len(data))
    assert bytes(puller.received) == data


def test_a_peer_that_leaves_is_noticed_while_nothing_is_read(tmp_path: Path, pullers: Make) -> None:
    stream = SocketStream(tmp_path / "line")
    puller = pullers(stream)
    puller.room = 0
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(tmp_path / "line"))
        puller.wait(lambda: stream.connected)
        peer.sendall(b"x" * 10_000)
    puller.wait(lambda: not stream.connected)
    puller.room = 16
    puller.notified()
    assert len(puller.received) == 10_000


def test_connecting_stream_waits_for_its_peer(tmp_path: Path, pullers: Make) -> None:
    stream = SocketStream(tmp_path / "line", listen=False)
    puller = pullers(stream)
    assert not stream.connected
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "line"))
        listener.listen()
        listener.settimeout(SECONDS)
        for count in (1, 2):
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"hello")
                puller.wait(lambda: puller.received == b"hello")
                puller.received.clear()
                assert stream.connections == count


def test_a_peer_that_does_not_read_stops_the_writer(tmp_path: Path, pullers: Make) -> None:
    stream = SocketStream(tmp_path / "line")
    puller = pullers(stream)
    data = os.urandom(1 << 20)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(tmp_path / "line"))
        puller.wait(lambda: stream.connected)
        puller.send(data)
        assert puller.output, "a megabyte does not fit into a socket"
        assert receive(peer, len(data)) == data
        puller.wait(lambda: not puller.output)
    assert stream.bytes_dropped == 0


def test_pty(tmp_path: Path, pullers: Make) -> None:
    stream = PtyStream(tmp_path / "tty")
    puller = pullers(stream)
    puller.send(b"dropped")
    assert (stream.connected, stream.bytes_dropped) == (False, 7)
    for _ in range(2):
        fd = os.open(tmp_path / "tty", os.O_RDWR | os.O_NOCTTY)
        puller.wait(lambda: stream.connected)
        os.write(fd, b"\x03\r\x04")  # raw: no signal, no end of file, no translation
        puller.wait(lambda: puller.received == b"\x03\r\x04")
        puller.received.clear()
        puller.send(b"a\nb")
        assert os.read(fd, 16) == b"a\nb"
        os.close(fd)
        puller.wait(lambda: not stream.connected)
    puller.close()
    assert not (tmp_path / "tty").is_symlink()


def test_descriptors_of_the_caller(pullers: Make) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        puller = pullers(DescriptorPair(theirs.fileno()))
        ours.sendall(b"in")
        puller.wait(lambda: puller.received == b"in")
        puller.send(b"out")
        assert receive(ours, 3) == b"out"
        puller.close()
        assert theirs.getblocking()


def test_end_of_input_is_not_the_end_of_output(pullers: Make) -> None:
    (in_read, in_write), (out_read, out_write) = os.pipe(), os.pipe()
    stream = DescriptorPair(in_read, out_write)
    puller = pullers(stream)
    os.write(in_write, b"last words")
    os.close(in_write)
    puller.wait(lambda: puller.received == b"last words")
    puller.send(b"still here")
    assert os.read(out_read, 100) == b"still here"
    os.close(out_read)
    puller.send(b"lost")
    assert (stream.connected, stream.bytes_dropped) == (False, 4)
    os.close(in_read)
    os.close(out_write)


def test_file_keeps_what_was_there(tmp_path: Path, pullers: Make) -> None:
    (tmp_path / "log").write_bytes(b"before ")
    puller = pullers(FileStream(tmp_path / "log"))
    puller.send(b"after")
    assert (tmp_path / "log").read_bytes() == b"before after"


def test_a_full_file_drops_and_counts(pullers: Make) -> None:
    stream = FileStream(Path("/dev/full"))
    pullers(stream).send(b"nowhere to go")
    assert (stream.bytes_dropped, stream.errors) == (13, 1)


def test_memory_takes_what_its_capacity_allows() -> None:
    stream = MemoryStream(capacity=4)
    notices: list[None] = []
    stream.start(lambda: notices.append(None))
    assert [stream.write(b"abc"), stream.write(b"def"), stream.write(b"ef")] == [3, 1, 0]
    assert stream.take() == b"abcd"
    assert len(notices) == 1
    stream.feed(b"xyz")
    assert [stream.read(2), stream.read(2)] == [b"xy", b"z"]


def test_dead_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "line"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    first = open_stream(f"listen:{path}")
    with pytest.raises(IolaneError, match="line is in use"):
        open_stream(f"listen:{path}")
    first.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("listen:", "stream 'listen:' needs a path (write listen:PATH)"),
        ("tcp:1", f"'tcp:1' names no stream ({FORMS})"),
        ("fd:x", "stream 'fd:x' needs one or two descriptors (write fd:3 or fd:0:1)"),
        ("fd:999", "fd:999: bad file descriptor"),
        ("file:/nowhere/log", "/nowhere/log: no such file or directory"),
        ("listen:/nowhere/line", "/nowhere/line: no such file or directory"),
        (f"listen:/{'x' * 200}", f"/{'x' * 200}: af_unix path too long"),
        ("pty:/nowhere/link", "/nowhere/link: no such file or directory"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_line(text: str, message: str) -> None:
    with pytest.raises(IolaneError) as caught:
        open_stream(text)
    assert str(caught.value) == message
