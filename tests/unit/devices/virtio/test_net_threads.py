"""The network device served by compiled code in threads of its own, over vhost-user: taps, stops, changes."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from iolane.backends.net import MemoryNet, NetBackend, Tap
from iolane.carriers.vhost_user import FrontEnd, SharedMemory, VhostUserServer
from iolane.carriers.vhost_user.front_end import USED
from iolane.devices.virtio.net import BareNet
from iolane.devices.virtio.net.features import NetFeature
from iolane.errors import IolaneError
from iolane.model.virtio.compiled_ring import CompiledRing
from iolane.model.workers import Workers
from iolane.testing.drivers.virtio import DriverMemory, DriverRing, Used
from iolane.testing.host_namespace import NetworkNamespace
from iolane.uapi.virtio_net import HEADER
from tests.unit.devices.virtio.packet_socket import SocketTap

MEMORY = 1 << 21
SIZE = 64
SECONDS = 30.0
PLAIN = bytes(HEADER.size)
MAC = bytes.fromhex("020000000001")
HOST, GUEST = "10.9.0.1", "10.9.0.2"


class Guest:
    """A front end with one queue pair, and all of the device that it talks to."""

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        backend: NetBackend,
        *,
        pcap: Path | None = None,
        mtu: int | None = None,
    ) -> None:
        self.backend = backend
        self.net = BareNet(backend=backend, queue_size=SIZE, queues=backend.queues, pcap=pcap, mtu=mtu)
        stack.callback(self.net.close)
        workers = stack.enter_context(Workers(1))
        server = stack.enter_context(VhostUserServer(self.net, folder / "net", workers=workers))
        memory = stack.enter_context(SharedMemory(MEMORY))
        self.front = FrontEnd(
            server.path, [memory], rings=2 * backend.queues, inflight_size=SIZE, protocol=USED
        )
        self.front.connect()
        stack.callback(self.front.close)
        heap = DriverMemory(memory.view, memory.guest_address)
        self.rings = [
            DriverRing(heap, SIZE, self.front.kicker(index), event_idx=True, indirect=True)
            for index in range(2 * backend.queues)
        ]

    def start(self, *indexes: int, base: int = 0) -> None:
        for index in indexes or range(len(self.rings)):
            self.front.start(index, self.rings[index], base)

    def give(self, *sizes: int) -> None:
        for size in sizes:
            self.rings[0].send(b"", size)
        self.rings[0].kick()

    def send(self, frame: bytes, header: bytes = PLAIN, index: int = 1) -> None:
        self.rings[index].send([header, frame], indirect=True)
        self.rings[index].kick()

    def collect(self, index: int, count: int = 1) -> list[Used]:
        found = self.rings[index].collect()
        while len(found) < count:
            assert self.front.rings[index].wait_call(SECONDS), (
                f"{len(found)} of {count}; {self.net.describe()}"
            )
            found += self.rings[index].collect()
        return found

    def shown(self, name: str) -> object:
        return self.net.describe().get(name)

    def compiled(self, index: int = 0) -> bool:
        return isinstance(self.net.queues[index].ring, CompiledRing)


def until(done: Callable[[], bool], what: str = "it is so") -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def rests() -> None:
    """Nobody spins."""
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    monkeypatch.setenv("IOLANE_DATAPLANE", "compiled")
    with ExitStack() as entered:
        yield entered


@pytest.fixture
def wire() -> SocketTap:
    return SocketTap()


@pytest.fixture
def guest(stack: ExitStack, tmp_path: Path, wire: SocketTap) -> Guest:
    return Guest(stack, tmp_path, wire)


# Who serves.


def test_compiled_code_serves(guest: Guest, wire: SocketTap) -> None:
    guest.start()
    frames = [bytes([number]) * 100 for number in range(SIZE)]
    for frame in frames[: SIZE // 2]:
        guest.send(frame)
    guest.collect(1, SIZE // 2)
    assert wire.take() == frames[: SIZE // 2]
    guest.give(*[200] * SIZE)
    wire.feed(*frames)
    assert [used.data[HEADER.size :] for used in guest.collect(0, SIZE)] == frames
    assert guest.compiled(0)
    assert guest.compiled(1)
    shown = guest.net.describe()
    assert shown["receive0.packets"] == shown["receive0.chains"] == shown["network_packets_read"] == SIZE
    assert shown["transmit0.packets"] == shown["network_packets_written"] == SIZE // 2
    assert shown["receive0.packet_bytes"] == 100 * SIZE
    assert shown["receive0.slow"] == shown["transmit0.slow"] == 0


def test_the_readable_plane_can_be_chosen(
    stack: ExitStack, tmp_path: Path, wire: SocketTap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IOLANE_DATAPLANE", "python")
    guest = Guest(stack, tmp_path, wire)
    guest.start()
    guest.send(bytes(60))
    guest.collect(1)
    assert wire.take() == [bytes(60)]
    assert not guest.compiled(1)


@pytest.mark.parametrize("what", ["capture", "a network that only Python knows"])
def test_what_compiled_code_can_not_do(stack: ExitStack, tmp_path: Path, wire: SocketTap, what: str) -> None:
    network: NetBackend = wire if what == "capture" else MemoryNet()
    guest = Guest(stack, tmp_path, network, pcap=tmp_path / "pcap" if what == "capture" else None)
    guest.start()
    guest.send(bytes(60))
    guest.collect(1)
    assert guest.shown("transmit0.packets") == 1
    assert not guest.compiled(1)
    if network is not wire:
        wire.close()


def test_counts_outlive_the_rings(guest: Guest, wire: SocketTap) -> None:
    guest.start()
    guest.send(bytes(60))
    guest.send(bytes(60), bytes((0, 3)) + bytes(10))
    guest.collect(1, 2)
    before = {
        key: guest.shown(f"transmit0.{key}") for key in ("packets", "packet_bytes", "chains", "bytes_read")
    }
    base = guest.front.stop(1)
    assert {key: guest.shown(f"transmit0.{key}") for key in before} == before
    assert before["packets"] == 1
    assert before["chains"] == 2
    assert guest.shown("transmit_rejected_segmentation_unknown") == 1
    guest.start(1, base=base)
    guest.send(bytes(60))
    guest.collect(1)
    assert guest.shown("transmit0.packets") == 2


# Stops and changes while packets wait.


def test_a_stop_while_everything_waits(guest: Guest, wire: SocketTap) -> None:
    """For a packet, buffers, a network that takes no more: it ends at once, and says where to go on."""
    guest.start()
    guest.give(500)
    earlier = wire.fill()
    for number in range(3):
        guest.send(bytes([number]) * 60)
    rests()
    before = time.monotonic()
    bases = [guest.front.stop(index) for index in range(2)]
    assert time.monotonic() - before < SECONDS / 6
    assert bases == [0, 0]
    assert len(wire.take()) == earlier
    guest.start()
    guest.collect(1, 3)
    assert wire.take() == [bytes([number]) * 60 for number in range(3)]
    wire.feed(bytes(range(250)) * 4)
    rests()
    assert guest.front.stop(0) == 0
    guest.start(0)
    guest.give(600)
    assert b"".join(used.data for used in guest.collect(0, 2))[HEADER.size :] == bytes(range(250)) * 4


def test_a_front_end_that_comes_back_finds_every_chain_once(guest: Guest, wire: SocketTap) -> None:
    """The packet that waited for buffers was another driver's, as far as the device knows."""
    guest.start()
    wire.fill()
    for number in range(3):
        guest.send(bytes([number]) * 60)
    guest.give(100, 100)
    wire.feed(bytes(300))
    time.sleep(0.05)
    guest.front.reconnect()
    sent = wire.take()
    guest.collect(1, 3)
    sent += wire.take()
    assert [frame for frame in sent if len(frame) == 60] == [bytes([number]) * 60 for number in range(3)]
    guest.give(300)
    wire.feed(bytes(350))
    assert sum(used.written for used in guest.collect(0, 3)) == 362


def test_other_wires_while_packets_wait(guest: Guest, wire: SocketTap) -> None:
    """A guest masks its vector: the call descriptor changes under a thread that sleeps, or is busy."""
    guest.start()
    for number in range(50):
        if number % 2:
            wire.feed(bytes(60))
            guest.give(200)
        ring = guest.front.rings[0]
        ring.call_fd, old = os.eventfd(0, os.EFD_NONBLOCK), ring.call_fd
        guest.front.client.set_vring_call(0, ring.call_fd)
        os.close(old)
        if number % 2:
            guest.collect(0)
    assert guest.shown("receive0.packets") == 25


def test_pauses(guest: Guest, wire: SocketTap) -> None:
    guest.start()
    for _ in range(5):
        with guest.net.quiesced():
            guest.give(200)
            wire.feed(bytes(60))
            guest.send(bytes(60))
            time.sleep(0.02)
            assert guest.rings[0].collect() == guest.rings[1].collect() == []
        guest.collect(0)
        guest.collect(1)
    assert wire.take() == [bytes(60)] * 5


def test_sending_does_not_starve_receiving(guest: Guest, wire: SocketTap) -> None:
    """The driver sends without end; packets arrive all the same."""
    guest.start()
    for _ in range(20):
        guest.give(200)
        wire.feed(bytes(60))
        received = guest.rings[0].collect()
        deadline = time.monotonic() + SECONDS
        while not received:
            assert time.monotonic() < deadline
            while len(guest.rings[1]._free) > 4:
                guest.send(bytes(60))
            guest.rings[1].collect()
            wire.take()
            received = guest.rings[0].collect()
    assert guest.shown("receive0.packets") == 20


def test_the_link(guest: Guest, wire: SocketTap) -> None:
    guest.start()
    guest.net.set_link(False)
    guest.give(200)
    guest.send(bytes(60))
    guest.collect(1)
    wire.feed(bytes(60))
    until(lambda: guest.shown("receive_dropped_link_down") == 1)
    assert guest.shown("transmit_dropped_link_down") == 1
    assert wire.take() == []
    rests()
    guest.net.set_link(True)
    wire.feed(bytes(60))
    guest.send(bytes(61))
    guest.collect(0)
    guest.collect(1)
    assert wire.take() == [bytes(61)]


# Real taps.


@pytest.fixture
def namespace() -> Iterator[NetworkNamespace]:
    try:
        with NetworkNamespace() as namespace:
            os.close(os.open("/dev/net/tun", os.O_RDWR))
            yield namespace
    except (IolaneError, OSError) as error:
        pytest.skip(f"REAL TAPS ARE NOT TESTED HERE: {error}")


@pytest.fixture
def tapped(namespace: NetworkNamespace, stack: ExitStack, tmp_path: Path) -> Guest:
    """On a tap whose other end is the host's own stack."""
    guest = Guest(stack, tmp_path, Tap("tap0"))
    namespace.set_up("tap0", address=HOST)
    with IPRoute() as route:
        (index,) = route.link_lookup(ifname="tap0")
        route.neigh("replace", dst=GUEST, lladdr="02:00:00:00:00:01", ifindex=index, state="permanent")
    return guest


def hardware_address() -> bytes:
    with IPRoute() as route:
        (index,) = route.link_lookup(ifname="tap0")
        (link,) = route.link("get", index=index)
        return bytes.fromhex(str(link.get_attr("IFLA_ADDRESS")).replace(":", ""))


def udp(text: bytes) -> bytes:
    """A datagram of the guest's whose checksum is left to the host."""
    payload = struct.pack(">HHHH", 1, 7777, 8 + len(text), 0) + text
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, 17, 0)
    header += socket.inet_aton(GUEST) + socket.inet_aton(HOST)
    total: int = sum(struct.unpack(">10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    ip = header[:10] + (~((total & 0xFFFF) + (total >> 16)) & 0xFFFF).to_bytes(2, "big") + header[12:]
    return hardware_address() + MAC + b"\x08\x00" + ip + payload


def datagrams(guest: Guest, sender: socket.socket, texts: list[bytes]) -> list[bytes]:
    """What the guest gets of datagrams that the host sends: their texts."""
    found: list[bytes] = []
    for text in texts:
        sender.sendto(text, (GUEST, 9))
    deadline = time.monotonic() + SECONDS
    left: list[Used] = []
    while len(found) < len(texts):
        assert time.monotonic() < deadline, f"{len(found)} of {len(texts)}"
        left += guest.rings[0].collect()
        while left:
            count = int.from_bytes(left[0].data[10:12], "little")
            if len(left) < count:
                break
            packet = b"".join(used.data for used in left[:count])[HEADER.size :]
            del left[:count]
            guest.give(*[400] * count)
            if packet[12:14] == b"\x08\x00" and packet[23] == 17:
                found.append(packet[42:])
    return found


def test_a_tap_both_ways(tapped: Guest) -> None:
    """Checksums left to the host; datagrams of many sizes from it, over one buffer or several."""
    tapped.start()
    tapped.give(*[400] * 40)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
        host.settimeout(SECONDS)
        host.bind((HOST, 7777))
        for length in (0, 1, 100, 1400):
            tapped.send(udp(b"x" * length), struct.pack("<BBHHHHH", 1, 0, 0, 0, 34, 6, 0))
            assert host.recv(2000) == b"x" * length
        texts = [os.urandom(length) for length in (30, 100, 1000, 1472, 64, 700)] * 20
        for start in range(0, len(texts), 6):
            assert datagrams(tapped, host, texts[start : start + 6]) == texts[start : start + 6]
    assert tapped.compiled()
    assert tapped.shown("receive0.slow") == tapped.shown("transmit0.slow") == 0
    assert tapped.shown("network_packets_written") == 4
    rests()


@pytest.mark.parametrize(
    "features", [(), (NetFeature.MRG_RXBUF,), (NetFeature.MRG_RXBUF, NetFeature.GUEST_CSUM)]
)
def test_with_other_features(tapped: Guest, features: tuple[NetFeature, ...]) -> None:
    front = tapped.front
    offered = front.features
    offload = sum(1 << feature for feature in range(24))
    front.features = offered & ~offload | sum(1 << feature for feature in features)
    front.client.set_features(front.features)
    tapped.start()
    tapped.give(*[1526] * 20)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
        assert datagrams(tapped, host, [b"one", b"two"]) == [b"one", b"two"]
    assert tapped.net.acknowledged & offload == sum(1 << feature for feature in features)


def test_an_interface_that_is_down(tapped: Guest, namespace: NetworkNamespace) -> None:
    """What is sent is dropped, and counted; it comes up again, and nothing else was lost."""
    tapped.start()
    with IPRoute() as route:
        (index,) = route.link_lookup(ifname="tap0")
        route.link("set", index=index, state="down")
        for _ in range(3):
            tapped.send(bytes(60))
        tapped.collect(1, 3)
        assert tapped.shown("network_packets_dropped") == 3
        assert tapped.net.link_up
        rests()
        route.link("set", index=index, state="up")
    tapped.send(bytes(60))
    tapped.collect(1)
    assert tapped.shown("network_packets_written") == 1


@pytest.mark.parametrize("buffers", [0, 3])
def test_a_tap_that_is_deleted(tapped: Guest, namespace: NetworkNamespace, buffers: int) -> None:
    """The link goes down, whether there are buffers or not; nobody spins, what is sent is dropped."""
    tapped.start()
    tapped.give(*[1526] * buffers)
    time.sleep(0.1)
    tapped.rings[0].collect()
    waiting = tapped.shown("network_packets_read")
    namespace.delete("tap0")
    if buffers or not waiting:
        until(lambda: not tapped.net.link_up)
        rests()
    tapped.send(bytes(60))
    tapped.collect(1)
    until(lambda: not tapped.net.link_up)
    rests()
    tapped.send(bytes(60))
    tapped.collect(1)
    assert tapped.shown("network_connected") == 0
    assert tapped.shown("errors") == 0
    for index in range(2):
        tapped.front.stop(index)


def test_a_pair_whose_receive_queue_stopped_first_still_sends(
    namespace: NetworkNamespace, stack: ExitStack, tmp_path: Path
) -> None:
    """Its tap queue is detached then, and the kernel takes nothing there: the tap is not lost by that."""
    guest = Guest(stack, tmp_path, Tap("tap0", queues=2))
    namespace.set_up("tap0", address=HOST)
    guest.start()
    guest.front.stop(2)
    guest.send(bytes(60), index=3)
    guest.collect(3)
    assert guest.net.link_up
    assert guest.shown("network_packets_dropped") == 0
    assert guest.shown("network_packets_written") == 1
