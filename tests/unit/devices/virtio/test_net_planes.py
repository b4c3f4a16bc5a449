"""The compiled plane and the readable one: the same rings and packets give the same, step by step."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from iolane.devices.virtio.net.features import NetFeature
from iolane.devices.virtio.net.header import PacketHeader
from iolane.model.virtio.features import mask
from iolane.uapi.virtio_net import HEADER
from tests.unit.devices.virtio.net_planes import COMMON, MERGEABLE, OFFLOADS, Plane, frame, header

FEATURES = {
    "plain": COMMON,
    "mergeable": COMMON | MERGEABLE,
    "offloads": COMMON | OFFLOADS,
    "all": COMMON | MERGEABLE | OFFLOADS,
    "some": COMMON | MERGEABLE | mask((NetFeature.CSUM, NetFeature.HOST_TSO4, NetFeature.GUEST_CSUM)),
}
STEPS = 120
PLAIN = bytes(HEADER.size)


class Duel:
    """Both planes; whatever is done, is done to both."""

    def __init__(self, features: int, mtu: int | None = None) -> None:
        self.planes = [Plane(compiled=compiled, features=features, mtu=mtu) for compiled in (False, True)]
        self.mergeable = bool(features & MERGEABLE)
        self.passed: Counter[str] = Counter()
        for index in range(2):
            self.each(lambda plane, index=index: plane.start(index))  # type: ignore[misc]

    def each(self, do: Callable[[Plane], object]) -> None:
        for plane in self.planes:
            do(plane)

    def give(self, *rooms: int, indirect: bool = False) -> None:
        self.each(lambda plane: plane.give(list(rooms), indirect=indirect))

    def send(self, data: bytes, *cuts: int, packet_header: bytes = PLAIN, indirect: bool = False) -> None:
        self.each(lambda plane: plane.send(packet_header + data, list(cuts), indirect=indirect))

    def feed(self, data: bytes, packet_header: bytes = PLAIN) -> None:
        self.each(lambda plane: plane.tap.feed(data, header=packet_header))

    def has_room(self, index: int, descriptors: int) -> bool:
        return all(len(plane.drivers[index]._free) >= descriptors for plane in self.planes)

    def compare(self) -> None:
        """Serve, and look."""
        self.each(Plane.serve)
        readable, compiled = (plane.look() for plane in self.planes)
        assert compiled.sent == readable.sent
        assert compiled.broken == readable.broken
        assert compiled.counts == readable.counts
        if self.broken:  # what was given back before the wrong chain need not have been published
            return
        assert compiled.used == readable.used
        assert compiled.indexes == readable.indexes
        assert compiled.memory == readable.memory
        self.passed["sent"] += len(readable.sent)
        self.passed["received"] += sum(1 for index, *_ in readable.used if index == 0)

    @property
    def broken(self) -> bool:
        return any(queue.rejection is not None for queue in self.planes[1].device.queues)

    @property
    def slow(self) -> int:
        shown = self.planes[1].device.describe()
        return sum(int(shown.get(f"{name}0.slow", 0)) for name in ("receive", "transmit"))

    def close(self) -> None:
        self.each(Plane.close)


def rooms(chance: random.Random, mergeable: bool) -> list[int]:
    """Of a buffer: in most there is room for a frame, in some the header is cut."""
    whole = ([1526], [1526], [2048], [12, 1514], [12, 65550], [5, 7, 1600], [70000], [100])
    return chance.choice((*whole, [12], [14], [100, 200, 300]) if mergeable else whole)


def do_something(duel: Duel, chance: random.Random) -> None:
    kind, indirect = chance.random(), chance.random() < 0.5
    if not duel.planes[0].device.link_up and chance.random() < 0.3:
        duel.each(lambda plane: plane.device.set_link(True))
    if kind < 0.4:
        sizes = rooms(chance, duel.mergeable)
        if duel.has_room(0, len(sizes)):
            duel.give(*sizes, indirect=indirect)
    elif kind < 0.65:
        data = frame(chance)
        cuts = [chance.randrange(1, 40), 12, chance.randrange(1, 2000)][: chance.randrange(4)]
        if duel.has_room(1, 4):
            duel.send(data, *cuts, packet_header=header(chance, len(data)), indirect=indirect)
    elif kind < 0.97:
        data = frame(chance)
        duel.feed(data, header(chance, len(data)))
    else:
        duel.each(lambda plane: plane.device.set_link(False))


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("mtu", [None, 1400], ids=["", "mtu"])
@pytest.mark.parametrize("seed", range(2))
def test_both_planes_do_the_same(name: str, mtu: int | None, seed: int) -> None:
    chance = random.Random(f"{name} {mtu} {seed}")
    duel = Duel(FEATURES[name], mtu)
    for _ in range(STEPS):
        for _ in range(chance.randrange(1, 6)):
            do_something(duel, chance)
        duel.compare()
    assert duel.passed["sent"] > STEPS // 10
    assert duel.passed["received"] > STEPS // 10
    assert duel.slow > 0
    duel.close()


@pytest.mark.parametrize("name", ["plain", "mergeable"])
def test_plain_packets_are_none_of_pythons_business(name: str) -> None:
    """Of every length; buffers are enough for one frame, or for several, or a frame takes several."""
    chance = random.Random(1)
    duel = Duel(FEATURES[name])
    for _ in range(300):
        data = chance.randbytes(chance.randrange(14, 1514))
        cuts = [chance.randrange(1, 100) for _ in range(chance.randrange(3))]
        length = 256 if name == "mergeable" else 1526
        duel.feed(data)
        for _ in range(-(-(len(data) + HEADER.size) // length)):
            duel.give(length)
        duel.send(data, *cuts, indirect=True)
        duel.compare()
    assert duel.passed["sent"] == 300
    assert duel.slow == 0
    duel.close()


@pytest.mark.parametrize("limit", [1, 29, 30, 32])
def test_segments_of_sixty_four_kilobytes(limit: int) -> None:
    """Longer than was expected, over as many buffers as Linux gives; at last as many as are needed."""
    duel = Duel(FEATURES["all"])
    data = random.Random(limit).randbytes(65535)
    large = PacketHeader(1, 1, 54, 1448, 34, 16, 0).pack()
    for _ in range(5):
        duel.feed(data, large)
        for count in (limit, 32):
            while duel.planes[0].drivers[0].outstanding < count:
                duel.give(2200, indirect=True)
            duel.compare()
        duel.feed(bytes(14))
        duel.compare()
    assert duel.planes[1].device.describe()["receive0.packet_bytes"] == 5 * (65535 + 14)
    assert duel.slow == 0
    duel.close()


WRONG = {
    "to be read where it is received": lambda plane: plane.give([64, 1526], readable=True),
    "no room for a header": lambda plane: plane.give([11]),
    "to be written where it is sent": lambda plane: plane.send(bytes(80), [], writable=True),
    "shorter than a header": lambda plane: plane.send(bytes(11), []),
    "no descriptor to receive": lambda plane: plane.drivers[0].offer(SIZE_AND_MORE),
    "no descriptor to send": lambda plane: plane.drivers[1].offer(SIZE_AND_MORE),
    "too many to receive": lambda plane: plane.heap.write(plane.drivers[0].available + 2, b"\xff\x7f"),
    "too many to send": lambda plane: plane.heap.write(plane.drivers[1].available + 2, b"\xff\x7f"),
}
SIZE_AND_MORE = 999


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("name", ["plain", "all"])
@pytest.mark.parametrize("before", range(3))
def test_a_driver_that_breaks_the_rules(what: str, name: str, before: int) -> None:
    """After some good chains. Where packets are received, it is found when there is one, and not before."""
    duel = Duel(FEATURES[name])
    for _ in range(before):
        duel.give(1526)
        duel.send(bytes(60))
    duel.each(WRONG[what])
    if "too many" not in what:
        duel.give(1526)
    duel.compare()
    for _ in range(before + 1):
        duel.feed(bytes(100))
    duel.compare()
    assert duel.broken
    duel.close()


def test_a_chain_that_is_there_twice_for_one_packet() -> None:
    duel = Duel(FEATURES["mergeable"])
    duel.give(100)
    duel.each(lambda plane: plane.drivers[0].offer(0))
    duel.feed(bytes(150))
    duel.compare()
    assert duel.broken
    duel.close()


@pytest.mark.parametrize("index", [0, 1])
def test_chains_of_an_earlier_life_come_first(index: int) -> None:
    """Three were in flight, in their order; and no more than the network takes."""
    duel = Duel(FEATURES["mergeable"])
    duel.each(lambda plane: plane.stop(index))
    for number in range(5):
        if index:
            duel.send(bytes([number]) * 60)
        else:
            duel.give(100 + number)
            duel.feed(bytes([number]) * 80)
    duel.each(lambda plane: plane.start(index, 3, (2, 0, 1)))
    duel.compare()
    assert duel.passed["sent" if index else "received"] == 5
    assert duel.planes[1].device.queues[index].repeats is False
    if index:
        duel.send(bytes(60))
    else:
        duel.give(1526)
        duel.feed(bytes(80))
    before = duel.slow
    duel.compare()
    assert duel.slow == before
    duel.close()


@pytest.mark.parametrize("enough", [False, True])
def test_a_packet_that_waits_for_buffers_is_saved(enough: bool) -> None:
    """Each plane's state is the other's, too."""
    duel = Duel(FEATURES["mergeable"])
    duel.give(500)
    duel.feed(bytes(range(256)) * 4)
    duel.each(Plane.serve)
    states = []
    for plane in duel.planes:
        with plane.device.quiesced():
            plane.device.on_save()
            states.append(plane.device.state.pending)
    assert states[0] == states[1] == [bytes(HEADER.size) + bytes(range(256)) * 4]
    duel.give(600 if enough else 60)
    duel.compare()
    assert duel.passed["received"] == (2 if enough else 0)
    duel.close()
