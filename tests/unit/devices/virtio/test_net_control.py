"""The network device's control queue, queue pairs, announcements and state (virtio 1.3, 5.1.6.5)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.backends.net import MemoryNet, Offload
from iolane.backends.net.tap import ALL_OFFLOADS
from iolane.devices.virtio.net import BareNet, NetFunction
from iolane.devices.virtio.net.announce import FIRST_NS, ROUNDS, STEP_NS
from iolane.devices.virtio.net.features import NetFeature
from iolane.devices.virtio.net.filter import BROADCAST, TABLE_LIMIT
from iolane.errors import IolaneError
from iolane.model.state import StateError
from iolane.model.virtio import Status
from iolane.model.virtio.features import mask
from iolane.testing.drivers.function import MEMORY_START
from iolane.testing.drivers.virtio_net import VirtioNetDriver
from iolane.testing.model_state import check_golden, golden_files, missing_golden
from iolane.uapi.virtio_net import Ack, Control, ControlMac, ControlRx, ControlVlan, NetStatus

GOLDEN = Path(__file__).with_name("golden")
ALL = (1 << 64) - 1
MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("020000000001")
GROUP = bytes.fromhex("01005e000001")
SECOND = 1_000_000_000


def frame(target: bytes = MAC, vlan: int | None = None) -> bytes:
    tag = b"" if vlan is None else b"\x81\x00" + vlan.to_bytes(2, "big")
    return target + OTHER + tag + b"\x08\x00" + os.urandom(46)


@pytest.fixture
def net() -> MemoryNet:
    return MemoryNet(offloads=ALL_OFFLOADS)


@pytest.fixture
def driver(net: MemoryNet) -> Iterator[VirtioNetDriver]:
    with VirtioNetDriver(NetFunction(backend=net, mac="52:54:00:12:34:56")) as driver:
        driver.give(64)
        yield driver


def passes(driver: VirtioNetDriver, net: MemoryNet, *frames: bytes) -> list[bool]:
    """Which of the frames the driver gets."""
    net.feed(*frames)
    got = [packet.frame for packet in driver.received()]
    return [data in got for data in frames]


# Receive filters (5.1.6.5.1 to 5.1.6.5.3).


def test_after_a_reset_the_own_address_and_broadcasts_pass(driver: VirtioNetDriver, net: MemoryNet) -> None:
    assert passes(driver, net, frame(), frame(BROADCAST), frame(OTHER), frame(GROUP)) == [1, 1, 0, 0]
    assert driver.device.counters["receive_filtered_address"] == 2


def test_without_filters_everything_passes(net: MemoryNet) -> None:
    lacking = mask((NetFeature.CTRL_RX, NetFeature.CTRL_RX_EXTRA, NetFeature.CTRL_VLAN))
    with VirtioNetDriver(NetFunction(backend=net), features=ALL & ~lacking) as driver:
        driver.give(8)
        assert passes(driver, net, frame(OTHER), frame(GROUP), frame(vlan=7)) == [1, 1, 1]


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ((), [1, 0, 0, 1]),
        ((ControlRx.PROMISC,), [1, 1, 1, 1]),
        ((ControlRx.PROMISC, ControlRx.NOUNI, ControlRx.NOMULTI, ControlRx.NOBCAST), [1, 1, 1, 1]),
        ((ControlRx.ALLMULTI,), [1, 0, 1, 1]),
        ((ControlRx.ALLMULTI, ControlRx.NOMULTI), [1, 0, 0, 1]),
        ((ControlRx.ALLUNI,), [1, 1, 0, 1]),
        ((ControlRx.ALLUNI, ControlRx.NOUNI), [0, 0, 0, 1]),
        ((ControlRx.NOBCAST, ControlRx.ALLMULTI), [1, 0, 1, 0]),
    ],
)
def test_modes(
    driver: VirtioNetDriver, net: MemoryNet, modes: tuple[ControlRx, ...], expected: list[int]
) -> None:
    for mode in modes:
        assert driver.command(Control.RX, mode, b"\1") is Ack.OK
    wanted = (frame(), frame(OTHER), frame(GROUP), frame(BROADCAST))
    assert passes(driver, net, *wanted) == expected
    for mode in modes:
        assert driver.command(Control.RX, mode, b"\0") is Ack.OK
    assert passes(driver, net, *wanted) == [1, 0, 0, 1]


def test_address_tables(driver: VirtioNetDriver, net: MemoryNet) -> None:
    assert driver.command(Control.MAC, ControlMac.TABLE_SET, driver.set_tables([OTHER], [GROUP])) is Ack.OK
    another = bytes.fromhex("020000000002")
    assert passes(driver, net, frame(OTHER), frame(GROUP), frame(another)) == [1, 1, 0]
    many = [number.to_bytes(6, "big") for number in range(TABLE_LIMIT + 1)]
    assert driver.command(Control.MAC, ControlMac.TABLE_SET, driver.set_tables(many, [])) is Ack.OK
    assert passes(driver, net, frame(another), frame(GROUP)) == [1, 0]
    driver.command(Control.MAC, ControlMac.TABLE_SET, driver.set_tables([], []))
    assert passes(driver, net, frame(OTHER), frame()) == [0, 1]


def test_another_address(driver: VirtioNetDriver, net: MemoryNet) -> None:
    """It is in the configuration, until a reset."""
    assert driver.command(Control.MAC, ControlMac.ADDR_SET, OTHER) is Ack.OK
    assert bytes(driver.config(place, 1) for place in range(6)) == OTHER
    assert passes(driver, net, frame(OTHER), frame()) == [1, 0]
    driver.reset()
    assert bytes(driver.config(place, 1) for place in range(6)) == MAC


def test_vlans(driver: VirtioNetDriver, net: MemoryNet) -> None:
    assert passes(driver, net, frame(vlan=7), frame()) == [0, 1]
    assert driver.command(Control.VLAN, ControlVlan.ADD, struct.pack("<H", 7)) is Ack.OK
    assert driver.command(Control.VLAN, ControlVlan.ADD, struct.pack("<H", 4095)) is Ack.OK
    # Priority bits are no part of the number.
    assert passes(driver, net, frame(vlan=7), frame(vlan=8), frame(vlan=0xFFFF)) == [1, 0, 1]
    assert driver.command(Control.VLAN, ControlVlan.DEL, struct.pack("<H", 7)) is Ack.OK
    assert passes(driver, net, frame(vlan=7), frame(vlan=4095)) == [0, 1]


WRONG = [
    ("unknown", 9, 0, b""),
    ("unknown", Control.RX, 6, b"\0"),
    ("malformed", Control.RX, ControlRx.PROMISC, b"\2"),
    ("malformed", Control.RX, ControlRx.PROMISC, b"\1\1"),
    ("malformed", Control.MAC, ControlMac.TABLE_SET, b""),
    ("malformed", Control.MAC, ControlMac.TABLE_SET, struct.pack("<I", 1) + OTHER),
    ("malformed", Control.MAC, ControlMac.TABLE_SET, struct.pack("<I", 0xFFFF_FFFF) + OTHER),
    ("malformed", Control.MAC, ControlMac.TABLE_SET, bytes(9)),
    ("malformed", Control.MAC, ControlMac.ADDR_SET, OTHER[:5]),
    ("malformed", Control.VLAN, ControlVlan.ADD, b"\0"),
    ("out_of_range", Control.VLAN, ControlVlan.ADD, struct.pack("<H", 4096)),
    ("malformed", Control.ANNOUNCE, 0, b"\0"),
    ("malformed", Control.GUEST_OFFLOADS, 0, bytes(7)),
    ("out_of_range", Control.GUEST_OFFLOADS, 0, struct.pack("<Q", 1 << NetFeature.CSUM)),
    ("not_negotiated", Control.MQ, 0, struct.pack("<H", 1)),
    ("too_long", Control.MAC, ControlMac.TABLE_SET, bytes(1 << 17)),
]


@pytest.mark.parametrize(("reason", "kind", "command", "data"), WRONG)
def test_wrong_commands_are_answered_and_counted(
    driver: VirtioNetDriver, net: MemoryNet, reason: str, kind: int, command: int, data: bytes
) -> None:
    driver.command(Control.MAC, ControlMac.TABLE_SET, driver.set_tables([OTHER], []))
    assert driver.command(kind, command, data) is Ack.ERR
    assert driver.device.counters[f"control_{reason}"] == 1
    assert passes(driver, net, frame(OTHER), frame(GROUP)) == [1, 0]


@pytest.mark.parametrize(("data", "room"), [(b"\0", 1), (b"\0\0\1", 0)])
def test_what_is_no_command_breaks_the_queue(driver: VirtioNetDriver, data: bytes, room: int) -> None:
    driver.control_ring.send(data, room)
    driver.control_ring.kick()
    assert driver.device.counters["rejected_malformed_request"] == 1
    assert Status.NEEDS_RESET in driver.status


# Offloads (5.1.6.5.8).


def test_offloads_change_while_the_driver_runs(driver: VirtioNetDriver, net: MemoryNet) -> None:
    assert net.wanted == ALL_OFFLOADS
    wanted = mask((NetFeature.GUEST_CSUM, NetFeature.GUEST_TSO6))
    assert driver.command(Control.GUEST_OFFLOADS, 0, struct.pack("<Q", wanted)) is Ack.OK
    assert net.wanted == Offload.CSUM | Offload.TSO6
    driver.reset()
    assert net.wanted == Offload(0)


# Queue pairs (5.1.6.5.6).


def test_queue_pairs() -> None:
    net = MemoryNet(queues=3)
    with VirtioNetDriver(NetFunction(backend=net, queues=3, mac="52:54:00:12:34:56")) as driver:
        assert driver.config(8, 2) == 3
        assert len(driver.rings) == 7
        for pair in range(3):
            driver.give(4, pair=pair)
            net.feed(frame(), queue=pair)
        assert [len(driver.received(pair)) for pair in range(3)] == [1, 0, 0]
        assert net.used == 1
        for wrong in (0, 4):
            assert driver.command(Control.MQ, 0, struct.pack("<H", wrong)) is Ack.ERR
        assert driver.command(Control.MQ, 0, struct.pack("<H", 2)) is Ack.OK
        assert net.used == 2
        for pair in range(2):
            driver.transmit(frame(), pair=pair)
        assert [queue for queue, _, _ in net.sent] == [0, 1]
        net.feed(queue=1)
        assert [len(driver.received(pair)) for pair in range(3)] == [0, 1, 0]
        driver.reset()
        assert net.used == 1


def test_without_mq_the_control_queue_is_the_third() -> None:
    net = MemoryNet(queues=2)
    device = NetFunction(backend=net, queues=2)
    with VirtioNetDriver(device, features=ALL & ~mask((NetFeature.MQ,))) as driver:
        assert driver.control_ring is driver.rings[2]
        assert driver.command(Control.RX, ControlRx.PROMISC, b"\1") is Ack.OK
        driver.rings[3].send(b"to nobody")
        driver.rings[3].kick()
        assert driver.rings[3].collect() == []


# Announcements (5.1.6.5.4).


def reload(driver: VirtioNetDriver, net: MemoryNet) -> NetFunction:
    """The state of the driver's device in another one, with the same memory."""
    other = NetFunction(backend=net, mac="52:54:00:12:34:56")
    other.dma.map(MEMORY_START, len(driver.memory), buffer=driver.memory)
    driver.device.pause()
    other.load(driver.device.save())
    return other


def test_a_driver_announces_itself_after_a_migration(driver: VirtioNetDriver) -> None:
    net = MemoryNet(offloads=ALL_OFFLOADS)
    other = reload(driver, net)
    assert not other.virtio.config.STATUS & NetStatus.ANNOUNCE
    other.clock.advance(FIRST_NS)
    assert int(other.virtio.config.STATUS) == NetStatus.LINK_UP | NetStatus.ANNOUNCE
    driver.control_ring.send([bytes((Control.ANNOUNCE, 0))], 1)
    other.virtio.queues[2].service()
    assert [used.data for used in driver.control_ring.collect()] == [b"\0"]
    assert int(other.virtio.config.STATUS) == NetStatus.LINK_UP
    other.clock.advance(ROUNDS * STEP_NS + SECOND)
    assert other.counters["announcements"] == ROUNDS
    assert net.take() == []
    other.close()


def test_a_driver_that_can_t_is_announced() -> None:
    """RFC 903 from its address, and not for ever."""
    first = NetFunction(backend=MemoryNet(), mac="52:54:00:12:34:56")
    lacking = mask((NetFeature.GUEST_ANNOUNCE,))
    with VirtioNetDriver(first, features=ALL & ~lacking) as driver:
        net = MemoryNet()
        other = reload(driver, net)
        other.clock.advance(10 * SECOND)
        sent = net.take()
        assert len(sent) == ROUNDS
        (kind,) = {(data[:6], data[6:12], data[12:14], data[20:22]) for data in sent}
        assert kind == (BROADCAST, MAC, b"\x80\x35", b"\x00\x03")
        assert {len(data) for data in sent} == {60}
        assert other.clock.timers == 0
        other.close()


def test_what_the_front_end_asks_for() -> None:
    """vhost-user's SEND_RARP and NET_SET_MTU."""
    net = MemoryNet()
    bare = BareNet(backend=net, mtu=9000)
    bare.announce(OTHER)
    assert net.take()[0][6:12] == OTHER
    bare.set_mtu(1500)
    for wrong in (67, 9001, 65536):
        with pytest.raises(IolaneError):
            bare.set_mtu(wrong)
    assert bare.front_end_mtu == 1500
    bare.close()


# State.


def golden_device() -> NetFunction:
    return NetFunction(
        backend=MemoryNet(queues=2, offloads=ALL_OFFLOADS), queues=2, mtu=1500, mac="52:54:00:12:34:56"
    )


def interesting_driver() -> VirtioNetDriver:
    """What the golden file was made of."""
    driver = VirtioNetDriver(golden_device())
    net = driver.device.virtio.backend
    assert isinstance(net, MemoryNet)
    driver.command(Control.RX, ControlRx.ALLMULTI, b"\1")
    driver.command(Control.MAC, ControlMac.TABLE_SET, driver.set_tables([OTHER], [GROUP]))
    driver.command(Control.MAC, ControlMac.ADDR_SET, bytes.fromhex("0200000000aa"))
    driver.command(Control.VLAN, ControlVlan.ADD, struct.pack("<H", 7))
    driver.command(Control.MQ, 0, struct.pack("<H", 2))
    driver.command(Control.GUEST_OFFLOADS, 0, struct.pack("<Q", mask((NetFeature.GUEST_CSUM,))))
    net.feed(OTHER + MAC + b"\x08\x00" + b"for no buffer")
    return driver


def test_golden_states() -> None:
    assert missing_golden(GOLDEN, NetFunction) == []
    for path in golden_files(GOLDEN, NetFunction):
        device = check_golden(golden_device, path)
        net = device.virtio
        assert net.mac == bytes.fromhex("0200000000aa")
        assert net.pairs == 2
        assert net.guest_offloads == Offload.CSUM
        assert net.filter.unicast == [OTHER]
        assert net.filter.multicast == [GROUP]
        assert net.filter.has(ControlRx.ALLMULTI)
        assert net.filter.passes_vlan(frame(vlan=7))
        assert not net.filter.passes_vlan(frame(vlan=6))
        assert net.state.pending[0].endswith(b"for no buffer")
        device.close()


def test_a_packet_that_waits_arrives_elsewhere(driver: VirtioNetDriver, net: MemoryNet) -> None:
    net.feed(*[frame() for _ in range(64)])
    assert len(driver.received()) == 64
    net.feed(data := frame())
    other = reload(driver, MemoryNet(offloads=ALL_OFFLOADS))
    driver.receive_ring().send(b"", 2048)
    other.virtio.queues[0].service()
    (packet,) = driver.received()
    assert packet.frame == data
    other.close()


def test_another_shape_is_refused(driver: VirtioNetDriver) -> None:
    state = driver.device.save()
    for other in (
        NetFunction(backend=MemoryNet(queues=2, offloads=ALL_OFFLOADS), queues=2),
        NetFunction(backend=MemoryNet(offloads=ALL_OFFLOADS), mtu=1500),
        NetFunction(backend=MemoryNet()),
    ):
        with pytest.raises(StateError, match=r"queue pairs|features|registers"):
            other.load(state)
        other.close()
