"""Hostile drivers and networks: each rule of a packet or a command is broken, and counted by its name."""

from __future__ import annotations

import random
import struct
from collections import Counter

import pytest

from iolane.backends.net import MemoryNet
from iolane.backends.net.tap import ALL_OFFLOADS
from iolane.devices.virtio.net import NetFunction
from iolane.devices.virtio.net.features import NetFeature
from iolane.devices.virtio.net.header import FrameRejection
from iolane.model.virtio import Feature, Status
from iolane.model.virtio.features import mask
from iolane.testing.drivers.virtio_net import VirtioNetDriver
from iolane.uapi.virtio_net import HEADER, Control
from tests.hostile.test_virtio_functions import Fuzzer

pytestmark = pytest.mark.hostile

STEPS = 4000
PACKETS = 7500
AT_LEAST = 100
COMMANDS = ("unknown", "not_negotiated", "malformed", "out_of_range", "too_long")
FEATURES = (
    (1 << 64) - 1,
    ~mask((NetFeature.CSUM, NetFeature.HOST_TSO4, NetFeature.HOST_TSO6, NetFeature.HOST_ECN)),
    ~mask((NetFeature.HOST_TSO4, NetFeature.HOST_ECN, NetFeature.MQ, NetFeature.CTRL_VLAN)),
)


def make() -> NetFunction:
    backend = MemoryNet(queues=2, offloads=ALL_OFFLOADS, capacity=64)
    return NetFunction(backend=backend, queues=2, queue_size=16, mtu=1400)


def network(function: NetFunction) -> MemoryNet:
    backend = function.virtio.backend
    assert isinstance(backend, MemoryNet)
    return backend


def header(chance: random.Random) -> bytes:
    """Some fields make sense."""
    return HEADER.pack(
        chance.choice((0, 1, 1, 3, 0xFF)),
        chance.choice((0, 0, 1, 4, 0x81, 3, 0x80, chance.getrandbits(8))),
        chance.choice((0, 54, 0xFFFF)),
        chance.choice((0, 0, 1, 1448)),
        chance.choice((0, 14, 34, chance.getrandbits(16))),
        chance.choice((6, 16, chance.getrandbits(16))),
        chance.choice((0, 1, 0xFFFF)),
    )


def command(chance: random.Random) -> bytes:
    """A class, a command, and data of some length."""
    data = chance.choice(
        (b"", b"\0", b"\1", b"\2", chance.randbytes(2), chance.randbytes(6), bytes(8), chance.randbytes(8))
    )
    table = struct.pack("<I", chance.choice((0, 1, 2, 0xFFFF_FFFF)))
    data = chance.choice((data, table + chance.randbytes(6) + table + chance.randbytes(12)))
    return bytes((chance.randrange(7), chance.randrange(7))) + data


class NetFuzzer(Fuzzer):
    """Packets and commands that may make sense, and a network that sends all sorts of things."""

    def offer(self) -> None:
        chance, rings = self.chance, self.guest.rings
        assert isinstance(self.function, NetFunction)
        net = network(self.function)
        net.feed(
            chance.randbytes(chance.choice((0, 13, 60, 900))),
            header=header(chance),
            queue=chance.randrange(2),
        )
        if chance.random() < 0.1:
            net.take()
        ring = chance.choice(rings)
        data = chance.choice((header(chance) + bytes(chance.choice((0, 14, 60, 300))), command(chance), b""))
        try:
            room = chance.choice((0, 1, 12, 400)) if data else 64
            ring.send(data, room, indirect=self.guest.has(Feature.INDIRECT_DESC) and chance.random() < 0.3)
            ring.collect()
        except (MemoryError, KeyError, AssertionError):
            ring.used_seen = ring._u16(ring.used + 2)
        ring.kick()


@pytest.mark.parametrize("seed", range(3))
def test_nothing_a_driver_or_a_network_does_is_an_error(seed: int) -> None:
    function = make()
    fuzzer = NetFuzzer(function, seed)
    for _ in range(STEPS):
        fuzzer.step()
        assert function.error_count == 0
    assert sum(queue.chains for queue in function.virtio.queues) > 50
    assert sum(queue.rejections for queue in function.virtio.queues) > 0
    document = function.save()
    other = make()
    other.load(document)
    assert other.save() == document
    for device in (function, other):
        device.close()


@pytest.mark.parametrize("seed", range(2))
def test_every_rule_is_broken_by_name(seed: int) -> None:
    chance = random.Random(seed)
    seen: Counter[str] = Counter()
    for features in FEATURES:
        function = make()
        with VirtioNetDriver(function, features=features & (1 << 64) - 1, memory=1 << 19) as driver:
            for _ in range(PACKETS // len(FEATURES)):
                length = chance.choice((0, 13, 14, 60, 600, 1418, 1419, 1500))
                driver.transmit_ring().send([header(chance), bytes(length)])
                driver.transmit_ring().kick()
                assert driver.transmitted() == 1
                driver.control_ring.send(command(chance), 1)
                driver.control_ring.kick()
                assert len(driver.control_ring.collect()) == 1
                network(function).take()
                assert Status.NEEDS_RESET not in driver.status
            for _ in range(AT_LEAST // len(FEATURES) + 1):
                driver.transmit(bytes(66_000))
                driver.command(Control.MAC, 0, bytes(1 << 17))
                driver.command(Control.GUEST_OFFLOADS, 0, chance.randbytes(8))
            seen.update(dict(function.counters.snapshot()))
            assert function.error_count == 0
    for name in [f"transmit_rejected_{reason.name.lower()}" for reason in FrameRejection]:
        assert seen[name] >= AT_LEAST, name
    for name in [f"control_{reason}" for reason in (*COMMANDS, "commands")]:
        assert seen[name] >= AT_LEAST, name
