"""The compiled queue with a peer at a socket: frames behind their length, and peers that come and go."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from iolane.memory.ring import TURN, NetPath, NetPort
from tests.unit.memory.ring_rig import WAIT
from tests.unit.memory.test_ring_packets import PLAIN, RINGS, PacketRig

STREAM = 4
LARGEST = 65589
GONE, NONSENSE = 1, 2


class Peer:
    """The other end of a port."""

    def __init__(self) -> None:
        self.port = NetPort(STREAM)
        self.end = self._connected()

    def _connected(self) -> socket.socket:
        ours, end = socket.socketpair()
        with ours:
            ours.setblocking(False)
            self.port.stream.connect(ours.fileno())
        end.settimeout(WAIT)
        return end

    def path(self, *, receives: bool) -> NetPath:
        path = NetPath(self.port, receives=receives)
        path.agree(offloads=0, mergeable=True)
        return path

    def leave(self) -> None:
        self.end.close()

    def come(self) -> None:
        self.end = self._connected()

    def take(self, length: int) -> bytes:
        got = bytearray()
        while len(got) < length:
            data = self.end.recv(length - len(got))
            assert data, "our end was closed"
            got += data
        return bytes(got)

    def take_frame(self) -> bytes:
        return self.take(int.from_bytes(self.take(4), "big"))


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.port.stream.cut()
    peer.leave()


def framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


@RINGS
def test_frames_pass_both_ways(peer: Peer, event_idx: bool, indirect: bool) -> None:
    chance = random.Random(7)
    options: dict[str, Any] = {"event_idx": event_idx, "indirect": indirect, "index": 65400, "size": 128}
    sending, receiving = peer.path(receives=False), peer.path(receives=True)
    with PacketRig(sending, **options) as sender, PacketRig(receiving, **options) as receiver:
        for _ in range(100):
            frames = [chance.randbytes(chance.randrange(14, 6000)) for _ in range(chance.randrange(1, 6))]
            for frame in frames:
                cut = chance.randrange(1, 30)
                sender.send_packet((PLAIN + frame)[:cut], (PLAIN + frame)[cut:], indirect=indirect)
            sender.driver.kick()
            assert [peer.take_frame() for _ in frames] == frames
            sender.wait(len(frames))
            chains = [-(-(12 + len(frame)) // 1000) for frame in frames]
            for _ in range(sum(chains)):
                receiver.give(1000, indirect=indirect)
            receiver.driver.kick()
            data = b"".join(framed(frame) for frame in frames)
            while data:
                cut = chance.choice((1, 3, 4, 500, 20_000))
                peer.end.sendall(data[:cut])
                data = data[cut:]
            used = receiver.wait(sum(chains))
            for frame, count in zip(frames, chains, strict=True):
                got = b"".join(one.data for one in used[:count])
                assert got[:12] == PLAIN[:10] + count.to_bytes(2, "little")
                assert got[12:] == frame
                del used[:count]
        assert sender.events == receiver.events == []
    assert peer.port.packets_read == receiving.packets
    assert peer.port.packets_written == sending.packets


def test_a_peer_that_does_not_read_for_a_while(peer: Peer) -> None:
    """A frame that was begun is finished when there is room, without a kick, and before the next."""
    with PacketRig(peer.path(receives=False), size=256) as rig:
        frame = os.urandom(60_000)  # a kernel takes smaller pieces whole or not at all
        for _ in range(40):
            rig.send_packet(PLAIN + frame)
        rig.driver.kick()
        deadline = time.monotonic() + WAIT
        while not peer.port.stream.pending and time.monotonic() < deadline:
            time.sleep(0.001)
        assert peer.port.stream.pending
        assert rig.queue.used_index < 40
        assert {peer.take_frame() for _ in range(40)} == {frame}
        rig.wait(40)
        assert not peer.port.stream.pending
        assert rig.events == []


def test_the_rest_of_the_last_frame_needs_no_kick(peer: Peer) -> None:
    """The frame counts as sent when it was begun, so nothing more may come to remind of it."""
    with PacketRig(peer.path(receives=False), size=256) as rig:
        sent = 0
        while not peer.port.stream.pending:
            rig.send_packet(PLAIN + bytes(LARGEST))
            rig.driver.kick()
            rig.wait(1)
            sent += 1
        for _ in range(sent):
            assert len(peer.take_frame()) == LARGEST


def test_a_peer_that_leaves_is_python_s_matter(peer: Peer) -> None:
    """Frames that it sent before are delivered; the next peer wakes who waits."""
    with PacketRig(peer.path(receives=True)) as rig:
        turned = rig.slow

        def part(event: int, head: int) -> bool:
            assert event == TURN
            if peer.port.stream.trouble:
                rig.events.append((event, peer.port.stream.trouble))
                peer.port.stream.cut()
                rig.queue.wait(rig.queue.last_available)
                rig.event.set()
                return True
            return turned(event, head)

        rig.slow = part
        rig.stop()
        rig.start()
        for number in range(3):
            rig.give(2000)
            rig.driver.kick()
            peer.end.sendall(framed(bytes([number]) * 100) + b"\0\0\1\0half")
            assert rig.wait(1)[0].data[12:] == bytes([number]) * 100
            peer.leave()
            assert rig.event.wait(WAIT)
            rig.event.clear()
            assert peer.port.receive() is None
            peer.come()
        assert rig.events == [(TURN, GONE)] * 3


def test_nonsense_is_python_s_matter(peer: Peer) -> None:
    peer.end.sendall(framed(bytes(LARGEST))[:4])
    assert peer.port.receive() is None
    assert peer.port.stream.trouble == 0
    peer.end.sendall(bytes(LARGEST) + (LARGEST + 1).to_bytes(4, "big"))
    assert peer.port.receive() == PLAIN + bytes(LARGEST)
    for _ in range(2):
        assert peer.port.receive() is None
    assert peer.port.stream.trouble == NONSENSE
    peer.port.stream.cut()
    assert peer.port.stream.trouble == 0
    assert peer.end.recv(1) == b""


@pytest.mark.parametrize("length", [0, 1, 13])
def test_runts_are_python_s(peer: Peer, length: int) -> None:
    with PacketRig(peer.path(receives=True)) as rig:
        rig.give(2000)
        peer.end.sendall(framed(bytes(length)))
        assert rig.event.wait(WAIT)
        assert rig.events[0][0] == TURN


def test_without_a_peer_nothing_is_sent(peer: Peer) -> None:
    peer.port.stream.cut()
    assert peer.port.send(PLAIN + bytes(14)) == -1
    assert peer.port.receive() is None
    assert peer.port.stream.trouble == 0


def test_a_peer_that_left_while_we_sent(peer: Peer) -> None:
    peer.leave()
    assert peer.port.send(PLAIN + bytes(14)) == -1
    assert peer.port.stream.trouble == GONE


def test_streams_that_can_not_be(peer: Peer) -> None:
    for options in ({"input": bytes((1 << 20) + 1)}, {"output": bytes(LARGEST + 5)}):
        with pytest.raises(ValueError, match="bytes of input"):
            peer.port.stream.connect(0, **options)
    with pytest.raises(ValueError, match="no descriptor"):
        peer.port.stream.connect(-1)
    assert peer.port.receive() is None, "it is cut"
    for packet in (b"", bytes(11), bytes(LARGEST + 13)):
        assert peer.port.send(packet) == -1
