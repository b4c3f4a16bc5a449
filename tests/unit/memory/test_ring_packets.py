"""The compiled queue with packets: what is sent and received, what is left to Python, how it waits."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from iolane.memory.ring import BROKEN_MEMORY, TURN, NetPath, NetPort
from tests.unit.memory.ring_rig import BYTES, START, WAIT, RingRig
from tests.unit.memory.test_ring_flights import ENTRY, LOG, shared
from tests.unit.memory.test_ring_flights import HEADER as INFLIGHT_HEADER

PLAIN = bytes(12)
TAP, SINK, SOURCE, ECHO = range(4)
LARGEST = 65589
TOLD = 5.0
"""Seconds in which a queue that waits notices anything."""


class Wire:
    """A network that is a socket, and what compiled code may do of it."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours = ours
        for end in (ours, self.peer):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)
        self.port = NetPort(TAP, fd=ours.fileno())

    def path(self, *, receives: bool, **agreed: Any) -> NetPath:
        path = NetPath(self.port, receives=receives)
        path.agree(**{"offloads": 0, **agreed})
        return path

    def fill(self) -> int:
        """Until it takes no more."""
        count = 0
        while True:
            try:
                self._ours.send(bytes(1024))
            except BlockingIOError:
                return count
            count += 1

    def take(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.peer.recv(1 << 17))
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._ours.close()
        self.peer.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


class PacketRig(RingRig):
    """What is left to Python is given back, unseen, or breaks the queue."""

    def __init__(self, path: NetPath, **options: Any) -> None:
        super().__init__(path, **options)
        self.slow: Callable[[int, int], bool] = self.turn

    def turn(self, event: int, head: int) -> bool:
        self.events.append((event, head))
        self.event.set()
        if event != TURN:
            return False
        at = self.driver.available + 4 + 2 * (self.queue.last_available % self.driver.size)
        head = self.heap.load16(at)
        self.queue.take(head)
        self.queue.complete(head, 0)
        return True

    def send_packet(self, *pieces: bytes, indirect: bool = False) -> int:
        return self.driver.send(pieces, indirect=indirect)

    def give(self, *rooms: int, indirect: bool = False) -> int:
        return self.driver.send(b"", rooms, indirect=indirect)


RINGS = pytest.mark.parametrize(("event_idx", "indirect"), [(False, False), (True, False), (True, True)])


@RINGS
def test_packets_come_back_as_they_were_sent(event_idx: bool, indirect: bool) -> None:
    """Through one port, by a thread for each way; both queues wrap, and the indexes pass 65535."""
    chance = random.Random(3)
    port = NetPort(ECHO, length=LARGEST)
    paths = [NetPath(port, receives=receives) for receives in (False, True)]
    for path in paths:
        path.agree(offloads=0, mergeable=True)
    options: dict[str, Any] = {"event_idx": event_idx, "indirect": indirect, "index": 65000, "size": 64}
    with PacketRig(paths[0], **options) as sender, PacketRig(paths[1], **options) as receiver:
        for _ in range(300):
            frames = [chance.randbytes(chance.randrange(14, 3000)) for _ in range(chance.randrange(1, 5))]
            chains = 0
            for frame in frames:
                cut = chance.randrange(1, 30)
                packet = PLAIN + frame
                sender.send_packet(packet[:cut], packet[cut:], indirect=indirect)
                for _ in range(-(-len(packet) // 1000)):
                    receiver.give(1000, indirect=indirect)
                    chains += 1
            receiver.driver.kick()
            assert [used.written for used in sender.wait(len(frames))] == [0] * len(frames)
            used = receiver.wait(chains)
            for frame in frames:
                count = int.from_bytes(used[0].data[10:12], "little")
                got = b"".join(one.data for one in used[:count])
                assert got[12:] == frame
                del used[:count]
            assert not used
        assert sender.events == receiver.events == []
    assert port.packets_read == port.packets_written == paths[0].packets == paths[1].packets


def test_a_full_echo_waits_for_its_reader() -> None:
    port = NetPort(ECHO, length=100)
    sending, receiving = (NetPath(port, receives=receives) for receives in (False, True))
    with PacketRig(sending, size=512) as sender, PacketRig(receiving, size=512) as receiver:
        for _ in range(400):
            sender.send_packet(PLAIN + bytes(100))
        sender.driver.kick()
        while sender.queue.last_available < 256:
            time.sleep(0.001)
        time.sleep(0.05)
        assert sender.queue.last_available in {256, 257}, "one more may lie unread at the port"
        for _ in range(400):
            receiver.give(200)
        receiver.wait(400)
        sender.wait(400)


def test_a_source_and_a_sink() -> None:
    source, sink = NetPort(SOURCE, length=100), NetPort(SINK)
    with PacketRig(NetPath(source, receives=True)) as rig:
        rig.give(1526)
        (used,) = rig.wait(1)
        assert used.data == bytes(10) + b"\1\0" + bytes(100)
    with PacketRig(NetPath(sink, receives=False)) as rig:
        rig.send_packet(PLAIN, bytes(60))
        rig.wait(1)
        assert (rig.queue.requests, rig.queue.bytes_read) == (1, 72)
    assert sink.packets_written == 1
    with PacketRig(NetPath(sink, receives=True)) as rig:
        rig.give(1526)
        rig.driver.kick()
        time.sleep(0.05)
        assert rig.driver.collect() == []


# What is left to Python.

SENT = {
    "no header": (b"\0" * 11,),
    "runt": (PLAIN, bytes(13)),
    "too long": (PLAIN, bytes(LARGEST + 1)),
    "over the MTU": (PLAIN, bytes(1519)),
    "checksum outside": (b"\1\0\0\0\0\0\x20\0\x1b\0\0\0", bytes(60)),
    "segments of an unknown kind": (b"\1\3\0\0\1\0\0\0\0\0\0\0", bytes(60)),
    "nothing but ECN": (b"\1\x80\0\0\1\0\0\0\0\0\0\0", bytes(60)),
    "segments not negotiated": (b"\1\4\0\0\1\0\0\0\0\0\0\0", bytes(60)),
    "ECN not negotiated": (b"\1\x81\0\0\1\0\0\0\0\0\0\0", bytes(60)),
    "segments without a checksum": (b"\0\1\0\0\1\0\0\0\0\0\0\0", bytes(60)),
    "segments without a size": (b"\1\1\0\0\0\0\0\0\0\0\0\0", bytes(60)),
}


@pytest.mark.parametrize("what", SENT)
def test_what_is_not_sent(wire: Wire, what: str) -> None:
    with PacketRig(wire.path(receives=False, offloads=3, longest=1518)) as rig:
        rig.send_packet(*SENT[what])
        rig.wait(1)
        assert rig.events == [(TURN, 0)]
        rig.send_packet(b"\1\1\xff\xff\1\0\x20\0\x1a\0\7\0", bytes(60))
        rig.send_packet(b"\6\0\xff\xff\1\0\x20\0\x1b\0\7\0", bytes(1518))
        rig.wait(2)
        assert len(rig.events) == 1
    good = [b"\1\1\x3c\0\1\0\x20\0\x1a\0\0\0" + bytes(60), b"\0\0\xee\5" + bytes(8) + bytes(1518)]
    assert wire.take() == good, "what means nothing to the network is not in the header"


RECEIVED = {
    "runt": (PLAIN, 13),
    "over the MTU": (PLAIN, 1519),
    "checksum": (b"\1" + bytes(11), 60),
    "flag": (b"\2" + bytes(11), 60),
    "segments": (b"\0\4" + bytes(10), 60),
}


@pytest.mark.parametrize("what", RECEIVED)
@pytest.mark.parametrize("room", [40, 1531])
def test_what_is_not_received(wire: Wire, what: str, room: int) -> None:
    """It lies at the port then, whole."""
    header, length = RECEIVED[what]
    data = random.Random(1).randbytes(length)
    found: list[bytes | None] = []

    def turn(event: int, head: int) -> bool:
        found.append(wire.port.take_back())
        return event == TURN

    with PacketRig(wire.path(receives=True, offloads=2, longest=1518, mergeable=True)) as rig:
        rig.stop()
        rig.slow = turn
        for _ in range(4):
            rig.give(room)
        rig.start()
        wire.peer.send(header + data)
        while not found:
            time.sleep(0.001)
        assert rig.driver.collect() == []
        wire.peer.send(PLAIN + bytes(14))
        (used,) = rig.wait(1)
    assert used.data == bytes(10) + b"\1\0" + bytes(14)
    assert found == [header + data]
    assert not wire.port.admitted


def test_while_the_path_is_closed_everything_is(wire: Wire) -> None:
    path = wire.path(receives=False)
    with PacketRig(path) as rig:
        path.open = False
        rig.send_packet(PLAIN + bytes(60))
        rig.wait(1)
        assert rig.events == [(TURN, 0)]
        path.open = True
        rig.send_packet(PLAIN + bytes(60))
        rig.wait(1)
        assert len(rig.events) == 1
    assert len(wire.take()) == 1


def test_chains_of_more_pieces_than_compiled_code_has_room_for(wire: Wire) -> None:
    with PacketRig(wire.path(receives=False), size=512) as rig:
        rig.send_packet(*[b"\0"] * 256)
        rig.send_packet(*[b"\0"] * 257, indirect=True)
        rig.wait(2)
        assert rig.events == [(TURN, 0)]
    assert [len(packet) for packet in wire.take()] == [256]


# Waiting.


def rests(rig: PacketRig) -> None:
    """The thread uses no processor; a stop ends it at once, and it goes on after that."""
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1
    before = time.monotonic()
    rig.stop()
    assert time.monotonic() - before < TOLD
    rig.start()


def test_waiting_for_a_packet(wire: Wire) -> None:
    with PacketRig(wire.path(receives=True)) as rig:
        rig.give(1526)
        rig.driver.kick()
        rests(rig)
        wire.peer.send(PLAIN + bytes(60))
        rig.wait(1)
        assert rig.events == []


@pytest.mark.parametrize("event_idx", [False, True])
def test_waiting_for_buffers(wire: Wire, event_idx: bool) -> None:
    """The first packet is read already, the others wait at the network; the driver's kick is heard."""
    with PacketRig(wire.path(receives=True, mergeable=True), event_idx=event_idx) as rig:
        for number in range(3):
            wire.peer.send(PLAIN + bytes([number]) * 100)
        rests(rig)
        rig.give(60)
        rig.driver.kick()
        rests(rig)
        for _ in range(5):
            rig.give(60)
        used = rig.wait(6)
        assert b"".join(
            one.data[12:] if number % 2 == 0 else one.data for number, one in enumerate(used)
        ) == (b"\0" * 100 + b"\1" * 100 + b"\2" * 100)
        assert rig.events == []


def test_waiting_for_the_network_to_take_more(wire: Wire) -> None:
    with PacketRig(wire.path(receives=False)) as rig:
        earlier = wire.fill()
        for number in range(3):
            rig.send_packet(PLAIN, bytes([number]) * 100)
        rig.driver.kick()
        rests(rig)
        assert rig.queue.last_available == 0
        packets = wire.take()
        rig.wait(3)
        packets += wire.take()
        assert len(packets) == earlier + 3
        assert [packet[-1] for packet in packets[earlier:]] == [0, 1, 2]
        assert rig.events == []


def test_a_network_that_is_gone(wire: Wire) -> None:
    """Python is asked what to make of it."""
    path = wire.path(receives=True)
    with PacketRig(path) as rig:
        rig.stop()

        def turn(event: int, head: int) -> bool:
            rig.events.append((event, head))
            wire.port.disconnect()
            rig.queue.wait(0)
            return True

        rig.slow = turn
        os.dup2(os.open("/dev/null", os.O_WRONLY), wire._ours.fileno())
        rig.give(1526)
        rig.start()
        while not rig.events:
            time.sleep(0.001)
        rests(rig)
        assert rig.events == [(TURN, 0)]


# What others see of it.


def test_the_counts(wire: Wire) -> None:
    """As Python's queue counts: the header included, and every chain."""
    receiving, sending = wire.path(receives=True, mergeable=True), wire.path(receives=False)
    with PacketRig(receiving) as rig:
        for _ in range(3):
            rig.give(100)
        wire.peer.send(PLAIN + bytes(200))
        rig.wait(3)
        rig.stop()
        assert (rig.queue.requests, rig.queue.bytes_read, rig.queue.bytes_written) == (3, 0, 212)
    with PacketRig(sending) as rig:
        rig.send_packet(PLAIN, bytes(60))
        rig.wait(1)
        rig.stop()
        assert (rig.queue.requests, rig.queue.bytes_read, rig.queue.bytes_written) == (1, 72, 0)
    assert (receiving.packets, receiving.bytes, sending.packets, sending.bytes) == (1, 200, 1, 60)
    assert (wire.port.packets_read, wire.port.packets_written) == (1, 1)


@pytest.mark.parametrize("left", [False, True], ids=["delivered", "left at the port"])
def test_what_was_written_is_marked(wire: Wire, left: bool) -> None:
    """The pages that hold the packet, no more of its buffers; of a packet that did not fit, too."""
    log = shared((START >> 15) + LOG)
    path = wire.path(receives=True, mergeable=True)
    with PacketRig(path, log=(log.address, log.length, START), keep=log) as rig:
        places = [rig.heap.allocate(8192, 4096) for _ in range(1 if left else 3)]
        for place in places:
            rig.driver.add([], [(place, 8192)])
        wire.peer.send(PLAIN + b"d" * (9000 if left else 8192))
        rig.driver.kick()
        if left:
            while not wire.port.admitted:
                time.sleep(0.001)
        else:
            rig.wait(2)
        rig.stop()
        bits = int.from_bytes(bytes(memoryview(log)), "little") >> (START >> 12)
        pages = {page for page in range(BYTES >> 12) if bits >> page & 1}
        expected = {(place - START) // 4096 + page for place in places[:1] for page in range(2)}
        expected |= set() if left else {(places[1] - START) // 4096}
        buffers = {(place - START) // 4096 + page for place in places for page in range(2)}
        assert pages & buffers == expected
        assert 0 in pages, "the used ring"


def test_the_in_flight_area(wire: Wire) -> None:
    """Nothing is in flight while packets wait; the area goes with the used ring."""
    area = shared(4096)
    view = memoryview(area)
    INFLIGHT_HEADER.pack_into(view, 0, 0, 1, 16, 0, 0)
    with PacketRig(wire.path(receives=True, mergeable=True), inflight=area.address, keep=area) as rig:
        heads = [rig.give(100) for _ in range(2)]
        rig.driver.kick()
        time.sleep(0.05)
        for _ in range(2):
            entries = [ENTRY.unpack_from(view, INFLIGHT_HEADER.size + 16 * head) for head in heads]
            assert [entry[0] for entry in entries] == [0, 0]
            if rig.driver.outstanding:
                wire.peer.send(PLAIN + bytes(180))
                assert [used.head for used in rig.wait(2)] == heads
                rig.stop()
        assert [entry[2] for entry in entries] == [0, 1]
        _, _, _, last, used_index = INFLIGHT_HEADER.unpack_from(view)
        assert (last, used_index) == (heads[-1], 2)
    view.release()


def test_guest_memory_that_is_cut(wire: Wire) -> None:
    """The kernel finds that it can't put the packet there; the queue is of no use any more."""
    with PacketRig(wire.path(receives=True)) as rig:
        rig.driver.add([], [(START + BYTES - 8192, 8192)])
        os.ftruncate(rig.fd, BYTES - 8192)
        wire.peer.send(PLAIN + bytes(60))
        rig.driver.kick()
        while not rig.queue.broken:
            rig.event.wait(WAIT)
        assert (BROKEN_MEMORY, 0) in rig.events
        assert rig.queue.used_index == 0


def test_ports_and_paths_that_can_not_be(wire: Wire) -> None:
    for kind, options in (
        (-1, {}),
        (5, {}),
        (4, {"fd": 1}),
        (TAP, {}),
        (SINK, {"fd": 1}),
        (ECHO, {}),
        (SOURCE, {"length": 13}),
    ):
        with pytest.raises(ValueError):
            NetPort(kind, **options)
    for length in (0, 11, LARGEST + 13):
        with pytest.raises(ValueError):
            wire.port.put_back(bytes(length))
    with PacketRig(wire.path(receives=True)) as rig:
        for call in (rig.queue.take, rig.queue.untake):
            with pytest.raises(ValueError):
                call(16)
    with RingRig(None) as other, pytest.raises(ValueError, match="without packets"):
        other.queue.wait(0)
