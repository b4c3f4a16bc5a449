"""Network back ends: a real tap in a network namespace of ours, peers at sockets, passt, captures."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from iolane.backends.net import LARGEST_FRAME, Capture, NetBackend, Offload, PasstNet, Tap, open_peer
from iolane.backends.net.base import PLAIN_HEADER
from iolane.backends.net.passt import VARIABLE
from iolane.backends.net.socket_peer import SocketPeer
from iolane.backends.net.tap import ALL_OFFLOADS, _failure
from iolane.devices.virtio.net.header import PacketHeader
from iolane.errors import IolaneError
from iolane.testing.host_namespace import NetworkNamespace
from iolane.uapi.virtio_net import HEADER, HeaderFlag

SECONDS = 20.0
MAC = bytes.fromhex("020000000001")
HOST, GUEST = "10.9.0.1", "10.9.0.2"


class Owner:
    """What a device is to its back end: pulls under a lock when it is notified."""

    def __init__(self, backend: NetBackend) -> None:
        self.backend = backend
        self.changed = threading.Condition()
        self.packets: list[tuple[int, bytes]] = []
        self.pull = True
        backend.start(self.notified)
        for queue in range(backend.queues):
            self.notified(queue)

    def notified(self, queue: int) -> None:
        with self.changed:
            self.backend.service()
            while self.pull and (packet := self.backend.receive(queue)) is not None:
                self.packets.append((queue, bytes(packet)))
            self.changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, SECONDS)

    def frames(self, kind: bytes) -> list[bytes]:
        """Frames of a type that came in."""
        return [data[HEADER.size :] for _, data in self.packets if data[HEADER.size + 12 :][:2] == kind]

    def send(self, frame: bytes, header: bytes = PLAIN_HEADER, queue: int = 0) -> bool:
        with self.changed:
            return self.backend.send(queue, header, [frame])


# Taps.


@pytest.fixture
def namespace() -> Iterator[NetworkNamespace]:
    try:
        with NetworkNamespace() as namespace:
            os.close(os.open("/dev/net/tun", os.O_RDWR))
            yield namespace
    except (IolaneError, OSError) as error:
        pytest.skip(f"REAL TAPS ARE NOT TESTED HERE: {error}")


@pytest.fixture
def tap(namespace: NetworkNamespace) -> Iterator[Tap]:
    backend = Tap("tap0")
    namespace.set_up("tap0", address=HOST)
    yield backend
    backend.close()


def ipv4(payload: bytes, protocol: int, source: str = GUEST, target: str = HOST) -> bytes:
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0)
    header += socket.inet_aton(source) + socket.inet_aton(target)
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + payload


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _address(interface: str) -> str:
    with IPRoute() as route:
        (index,) = route.link_lookup(ifname=interface)
        (link,) = route.link("get", index=index)
        return str(link.get_attr("IFLA_ADDRESS")).replace(":", "")


def arp_request() -> bytes:
    body = MAC + socket.inet_aton(GUEST) + bytes(6) + socket.inet_aton(HOST)
    return b"\xff" * 6 + MAC + b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01" + body


def test_a_tap_answers(tap: Tap) -> None:
    owner = Owner(tap)
    assert owner.send(arp_request())
    owner.wait(lambda: bool(owner.frames(b"\x08\x06")))
    answer = owner.frames(b"\x08\x06")[0]
    assert answer[:6] == MAC
    assert answer[28:32] == socket.inet_aton(HOST)
    assert tap.statistics()["network_packets_written"] == 1


def test_checksums_left_to_the_host(tap: Tap) -> None:
    """The kernel takes a UDP packet whose checksum is only begun, and one that is wrong it does not."""
    owner = Owner(tap)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(SECONDS)
        receiver.bind((HOST, 7777))
        target = bytes.fromhex(_address("tap0"))
        for text in (b"wrong", b"right"):
            udp = struct.pack(">HHHH", 1, 7777, 8 + len(text), 0x1234) + text
            header = PacketHeader(HeaderFlag.NEEDS_CSUM if text == b"right" else 0, 0, 0, 0, 34, 6, 0)
            owner.send(target + MAC + b"\x08\x00" + ipv4(udp, 17), header.pack())
        assert receiver.recv(100) == b"right"


def test_checksums_left_to_the_guest(tap: Tap, namespace: NetworkNamespace) -> None:
    """What the host sends is complete, unless the guest takes less."""
    owner = Owner(tap)
    owner.send(arp_request())
    owner.wait(lambda: bool(owner.frames(b"\x08\x06")))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number, offloads in enumerate((Offload(0), ALL_OFFLOADS), start=1):
            with owner.changed:
                tap.set_offloads(offloads)
            sender.sendto(b"hello", (GUEST, 9))
            owner.wait(lambda number=number: len(_udp(owner)) == number)  # type: ignore[misc]
    first, second = _udp(owner)
    assert first[0] & HeaderFlag.NEEDS_CSUM == 0
    assert second[0] & HeaderFlag.NEEDS_CSUM
    header = PacketHeader.unpack(second)
    assert (header.csum_start, header.csum_offset) == (34, 6)


def _udp(owner: Owner) -> list[bytes]:
    return [
        data
        for _, data in owner.packets
        if data[24:26] == b"\x08\x00"
        and data[26 + 9] == 17
        and data[26 + 16 : 26 + 20] == socket.inet_aton(GUEST)
    ]


def test_headers_that_the_kernel_refuses_are_dropped(tap: Tap) -> None:
    owner = Owner(tap)
    header = PacketHeader(0, 0x7F, 0, 0, 0, 0, 0)
    assert owner.send(arp_request(), header.pack())
    assert (tap.packets_dropped, tap.errors, tap.connected) == (1, 1, True)
    assert owner.send(arp_request())
    owner.wait(lambda: bool(owner.frames(b"\x08\x06")))


def test_a_frame_in_very_many_pieces(tap: Tap) -> None:
    owner = Owner(tap)
    request = arp_request()
    with owner.changed:
        assert tap.send(0, PLAIN_HEADER, [b"", *[b""] * 1500, request])
    owner.wait(lambda: bool(owner.frames(b"\x08\x06")))


def test_queues_of_a_tap(namespace: NetworkNamespace) -> None:
    """Only those in use get packets; flows come back by the queue that they were sent by."""
    tap = Tap("tapq", queues=2)
    namespace.set_up("tapq", address=HOST)
    owner = Owner(tap)
    with owner.changed:
        tap.use_queues(2)
    owner.send(arp_request(), queue=1)
    owner.wait(lambda: bool(owner.frames(b"\x08\x06")))
    with owner.changed:
        tap.use_queues(1)
        owner.packets.clear()
    assert owner.send(arp_request())
    owner.wait(lambda: bool(owner.frames(b"\x08\x06")))
    assert {queue for queue, _ in owner.packets} == {0}
    tap.close()


def test_a_tap_that_somebody_made(namespace: NetworkNamespace) -> None:
    namespace.make_tap("plain")
    namespace.make_tap("many", queues=True)
    Tap("plain").close()
    Tap("many").close()
    Tap("many", queues=2).close()
    with pytest.raises(IolaneError, match="is no tap that can have these queues"):
        Tap("plain", queues=2)
    with pytest.raises(IolaneError, match="is no tap"):
        Tap("lo")
    first = Tap("plain")
    with pytest.raises(IolaneError, match="the tap plain is in use"):
        Tap("plain")
    first.close()


def test_a_tap_that_is_deleted(tap: Tap, namespace: NetworkNamespace) -> None:
    """The link goes down, nobody spins, and what is sent is dropped."""
    owner = Owner(tap)
    namespace.delete("tap0")
    owner.wait(lambda: not tap.connected)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.1
    assert owner.send(arp_request())
    assert tap.packets_dropped == 1


@pytest.mark.parametrize(
    ("number", "existed", "message"),
    [
        (errno.EPERM, False, "does not exist, and may not be made"),
        (errno.EPERM, True, "is another user's"),
        (errno.ENOENT, False, "there is no /dev/net/tun"),
        (errno.EMFILE, False, "too many open files"),
    ],
)
def test_what_stands_in_the_way_is_said(number: int, existed: bool, message: str) -> None:
    assert message in str(_failure("tap0", existed, OSError(number, os.strerror(number))))


# Peers at sockets.


def framed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


@pytest.fixture(params=["python", "compiled"])
def peer_of(request: pytest.FixtureRequest) -> Callable[[str], SocketPeer]:
    """Makes peers whose frames are Python's, or compiled code's."""

    def opened(text: str) -> SocketPeer:
        backend = open_peer(text)
        if request.param == "compiled":
            assert backend.open_port(0) is not None
        return backend

    return opened


@pytest.fixture
def pair(tmp_path: Path, peer_of: Callable[[str], SocketPeer]) -> Iterator[tuple[Owner, Owner]]:
    """One listens, the other connects."""
    path = tmp_path / "peer"
    backends = [peer_of(f"listen:{path}"), peer_of(f"unix:{path}")]
    owners = (Owner(backends[0]), Owner(backends[1]))
    owners[0].wait(lambda: backends[0].connected)
    yield owners
    for backend in backends:
        backend.stop()  # else one may see the other leave while it is closed here
    for backend in backends:
        backend.close()


def test_peers_exchange_frames(pair: tuple[Owner, Owner]) -> None:
    frames = [os.urandom(length) for length in (14, 60, 1514, 65535, 3)] * 20
    for owner, other in (pair, pair[::-1]):
        for frame in frames:
            while not owner.send(frame):
                owner.wait(lambda: True)
                time.sleep(0.001)
        other.wait(lambda other=other: len(other.packets) == len(frames))  # type: ignore[misc]
        assert [data for _, data in other.packets] == [PLAIN_HEADER + frame for frame in frames]


def test_a_peer_that_does_not_read(pair: tuple[Owner, Owner]) -> None:
    """Frames are not taken any more, and one that was begun is finished first."""
    first, second = pair
    second.pull = False
    frame, sent = os.urandom(1500), 0
    while first.send(frame):
        sent += 1
    assert sent < 10_000
    with second.changed:
        second.pull = True
    second.notified(0)
    second.wait(lambda: len(second.packets) == sent)
    assert {data[HEADER.size :] for _, data in second.packets} == {frame}
    first.wait(lambda: first.send(b"last"))


def test_a_peer_that_leaves_and_another(tmp_path: Path, peer_of: Callable[[str], SocketPeer]) -> None:
    """Half a frame of the first is not the start of the second's."""
    path = tmp_path / "peer"
    backend = peer_of(f"listen:{path}")
    owner = Owner(backend)
    for number, data in enumerate((framed(b"first") + b"\0\0\1\0half", framed(b"second")), start=1):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            peer.sendall(data)
            owner.wait(lambda number=number: len(owner.packets) == number)  # type: ignore[misc]
        owner.wait(lambda: not backend.connected)
        assert owner.send(b"to nobody")
    assert [data[HEADER.size :] for _, data in owner.packets] == [b"first", b"second"]
    assert (backend.connections, backend.packets_dropped) == (2, 2)
    backend.close()
    assert not path.exists()


def test_a_peer_that_says_nonsense_is_thrown_out(
    tmp_path: Path, peer_of: Callable[[str], SocketPeer]
) -> None:
    path = tmp_path / "peer"
    backend = peer_of(f"listen:{path}")
    owner = Owner(backend)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(SECONDS)
        peer.connect(str(path))
        peer.sendall(framed(bytes(LARGEST_FRAME)) + (LARGEST_FRAME + 1).to_bytes(4, "big"))
        assert peer.recv(1) == b""
    assert (len(owner.packets), backend.errors) == (1, 1)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        peer.sendall(framed(b"sense"))
        owner.wait(lambda: len(owner.packets) == 2)
    backend.close()


def test_a_socket_that_was_opened_before(peer_of: Callable[[str], SocketPeer]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        backend = peer_of(f"fd:{ours.fileno()}")
        owner = Owner(backend)
        owner.send(b"hello")
        assert theirs.recv(100) == framed(b"hello")
        theirs.close()
        owner.wait(lambda: not backend.connected)
        backend.close()


def test_frames_in_any_pieces(peer_of: Callable[[str], SocketPeer]) -> None:
    """Wherever the stream is cut, the frames are the same."""
    chance = random.Random(5)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        backend = peer_of(f"fd:{ours.fileno()}")
        ours.close()
        owner = Owner(backend)
        frames = [chance.randbytes(chance.choice((0, 1, 14, 700, 1514, 65000))) for _ in range(60)]
        data = framed(*frames)
        while data:
            cut = chance.choice((1, 2, 3, 5, 100, 5000, 100_000))
            theirs.sendall(data[:cut])
            data = data[cut:]
        owner.wait(lambda: len(owner.packets) == len(frames))
        assert [packet for _, packet in owner.packets] == [PLAIN_HEADER + frame for frame in frames]
        backend.close()
        assert theirs.recv(1) == b"", "nobody else has the socket"


def test_frames_go_on_where_python_stopped() -> None:
    """Half a frame that was read, and half a frame that was not written, are not lost to compiled code."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        backend = open_peer(f"fd:{ours.fileno()}")
        owner = Owner(backend)
        frame = os.urandom(60_000)
        count = 0
        while owner.send(frame):
            count += 1
        theirs.sendall(framed(b"before", b"cut here")[:-3])
        owner.wait(lambda: len(owner.packets) == 1)
        with owner.changed:
            assert backend.open_port(0) is not None
        theirs.sendall(b"ere" + framed(b"behind"))
        owner.wait(lambda: len(owner.packets) == 3)
        assert [packet[HEADER.size :] for _, packet in owner.packets] == [b"before", b"cut here", b"behind"]
        theirs.settimeout(SECONDS)
        wanted, got = framed(*[frame] * count), b""
        while len(got) < len(wanted):
            got += theirs.recv(1 << 20)
        assert got == wanted
        backend.close()


def test_a_pipe_is_no_socket() -> None:
    readable, writable = os.pipe()
    backend = open_peer(f"fd:{writable}")
    assert backend.open_port(0) is None
    assert backend.ports == []
    backend.close()
    for fd in (readable, writable):
        os.close(fd)


# passt.


def test_no_passt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IolaneError, match="not installed") as caught:
        PasstNet()
    assert "apt-get install passt" in str(caught.value)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    with pytest.raises(IolaneError, match="which is no program"):
        PasstNet()


def test_a_passt_that_does_not_come_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "passt"
    program.write_text("#!/bin/sh\necho 'No interfaces with usable routes' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(program))
    with pytest.raises(IolaneError, match="passt does not come up: No interfaces with usable routes"):
        PasstNet()


def test_a_passt_that_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is up when it has gone to the background; when that ends, the link is down."""
    program = tmp_path / "passt"
    program.write_text("#!/bin/sh\n(sleep 0.2) &\nexit 0\n")
    program.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(program))
    backend = PasstNet(forward=["8080:80"])
    assert backend.connected
    owner = Owner(backend)
    owner.wait(lambda: not backend.connected)
    backend.close()


# Captures.


def test_a_capture_that_can_t_be_written_ends(tmp_path: Path) -> None:
    capture = Capture(Path("/dev/full"))
    capture.record([b"frame"])
    assert capture.statistics()["pcap_error"] == "no space left on device"
    capture.close()
    with pytest.raises(IolaneError):
        Capture(tmp_path / "none" / "net.pcap")


def test_segments_are_captured_whole(tmp_path: Path) -> None:
    capture = Capture(tmp_path / "net.pcap")
    capture.record([bytes(14), bytes(LARGEST_FRAME - 14)])
    capture.close()
    capture.record([b"after its end"])
    assert (tmp_path / "net.pcap").stat().st_size == 24 + 16 + LARGEST_FRAME
