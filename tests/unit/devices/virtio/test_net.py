"""The network device against virtio 1.3, 5.1: packets both ways."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.backends.net import LARGEST_FRAME, MemoryNet, Offload
from iolane.backends.net.tap import ALL_OFFLOADS
from iolane.devices.registry import create, create_virtio
from iolane.devices.virtio.net import BareNet, NetFunction
from iolane.devices.virtio.net.features import NetFeature, makes_sense
from iolane.devices.virtio.net.header import PacketHeader, complete_checksum
from iolane.errors import IolaneError
from iolane.model.virtio import Status
from iolane.model.virtio.features import mask
from iolane.testing.drivers.virtio_net import PLAIN, Packet, VirtioNetDriver
from iolane.uapi.virtio_net import HEADER, Gso, HeaderFlag

ALL = (1 << 64) - 1
MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("020000000001")
CHECKSUM = PacketHeader(HeaderFlag.NEEDS_CSUM, 0, 0, 0, 34, 16, 0)
SEGMENTS = PacketHeader(HeaderFlag.NEEDS_CSUM, Gso.TCPV4, 54, 1448, 34, 16, 0)


def frame(length: int = 60, target: bytes = MAC) -> bytes:
    return target + OTHER + b"\x08\x00" + os.urandom(length - 14)


@pytest.fixture
def net() -> MemoryNet:
    return MemoryNet(offloads=ALL_OFFLOADS)


def function(net: MemoryNet, **options: int) -> NetFunction:
    return NetFunction(backend=net, mac="52:54:00:12:34:56", **options)  # type: ignore[arg-type]


@pytest.fixture
def driver(net: MemoryNet) -> Iterator[VirtioNetDriver]:
    with VirtioNetDriver(function(net)) as driver:
        yield driver


def without(net: MemoryNet, *features: NetFeature, **options: int) -> VirtioNetDriver:
    return VirtioNetDriver(function(net, **options), features=ALL & ~mask(features))


# Features and configuration (5.1.3, 5.1.4).


def test_configuration(driver: VirtioNetDriver) -> None:
    assert bytes(driver.config(place, 1) for place in range(6)) == MAC
    assert [driver.config(place, 2) for place in (6, 8, 10)] == [1, 1, 0]
    assert driver.has(NetFeature.MAC)
    assert not driver.has(NetFeature.MQ)
    assert not driver.has(NetFeature.MTU)


def test_offloads_are_those_of_the_back_end() -> None:
    with VirtioNetDriver(function(MemoryNet())) as plain:
        assert not any(plain.has(feature) for feature in (NetFeature.CSUM, NetFeature.GUEST_TSO4))
        assert not plain.has(NetFeature.CTRL_GUEST_OFFLOADS)
    with VirtioNetDriver(function(MemoryNet(offloads=Offload.CSUM))) as checksums:
        assert checksums.has(NetFeature.GUEST_CSUM)
        assert not checksums.has(NetFeature.HOST_TSO4)


@pytest.mark.parametrize(
    ("features", "sensible"),
    [
        ((), True),
        ((NetFeature.HOST_TSO4,), False),
        ((NetFeature.HOST_TSO4, NetFeature.CSUM), True),
        ((NetFeature.GUEST_ECN, NetFeature.GUEST_CSUM), False),
        ((NetFeature.GUEST_ECN, NetFeature.GUEST_CSUM, NetFeature.GUEST_TSO6), True),
        ((NetFeature.MQ,), False),
        ((NetFeature.MQ, NetFeature.CTRL_VQ), True),
        ((NetFeature.CTRL_RX,), False),
    ],
)
def test_features_need_others(features: tuple[NetFeature, ...], sensible: bool) -> None:
    """5.1.3.1."""
    assert makes_sense(mask(features), control_queue=True) is sensible


def test_senseless_features_are_refused(net: MemoryNet) -> None:
    with VirtioNetDriver(function(net), ready=False) as driver:
        driver.add_status(Status.ACKNOWLEDGE)
        driver.add_status(Status.DRIVER)
        driver.write_features(1 << 32 | mask((NetFeature.HOST_TSO4,)))
        driver.add_status(Status.FEATURES_OK)
        assert Status.FEATURES_OK not in driver.status


# Transmission (5.1.6.2).


def test_packets_go_out(driver: VirtioNetDriver, net: MemoryNet) -> None:
    frames = [frame(length) for length in (14, 60, 1514)]
    assert driver.transmit(*frames) == 3
    assert [header for _, header, _ in net.sent] == [bytes(12)] * 3
    assert net.take() == frames
    shown = driver.device.describe()
    assert (shown["transmit0.packets"], shown["transmit0.packet_bytes"]) == (3, 14 + 60 + 1514)


def test_a_frame_in_many_pieces(driver: VirtioNetDriver, net: MemoryNet) -> None:
    data = frame(600)
    header = PLAIN.pack()
    pieces = [header[:5], header[5:] + data[:3], *(data[at : at + 7] for at in range(3, 600, 7))]
    driver.transmit_ring().send(pieces, indirect=True)
    driver.transmit_ring().kick()
    assert driver.transmitted() == 1
    assert net.take() == [data]


def test_offloads_go_out(driver: VirtioNetDriver, net: MemoryNet) -> None:
    """What the header says reaches the network, less what means nothing."""
    driver.transmit(frame(9000), header=SEGMENTS._replace(num_buffers=7, flags=0xFF))
    driver.transmit(frame(100), header=CHECKSUM._replace(gso_size=3, hdr_len=500))
    driver.transmit(frame(100), header=PLAIN._replace(csum_start=5, csum_offset=7))
    assert [PacketHeader.unpack(header) for _, header, _ in net.sent] == [
        SEGMENTS,
        CHECKSUM._replace(hdr_len=100),
        PLAIN,
    ]


WRONG = [
    ("RUNT", 13, PLAIN),
    ("TOO_LONG", LARGEST_FRAME + 1, PLAIN),
    ("OVER_MTU", 1400 + 14 + 4 + 1, PLAIN),
    ("CHECKSUM_NOT_NEGOTIATED", 60, CHECKSUM),
    ("CHECKSUM_OUTSIDE", 60, CHECKSUM._replace(csum_start=43)),
    ("CHECKSUM_OUTSIDE", 60, CHECKSUM._replace(csum_start=0xFFFF, csum_offset=0xFFFF)),
    ("SEGMENTATION_UNKNOWN", 60, SEGMENTS._replace(gso_type=Gso.UDP)),
    ("SEGMENTATION_UNKNOWN", 60, SEGMENTS._replace(gso_type=Gso.ECN)),
    ("SEGMENTATION_UNKNOWN", 60, SEGMENTS._replace(gso_type=0x7F)),
    ("SEGMENTATION_NOT_NEGOTIATED", 60, SEGMENTS),
    ("SEGMENTATION_NOT_NEGOTIATED", 60, SEGMENTS._replace(gso_type=Gso.TCPV6 | Gso.ECN)),
    ("SEGMENTATION_WITHOUT_CHECKSUM", 60, SEGMENTS._replace(flags=0)),
    ("SEGMENT_SIZE", 60, SEGMENTS._replace(gso_size=0)),
]
LACKING = {
    "CHECKSUM_NOT_NEGOTIATED": (NetFeature.CSUM, NetFeature.HOST_TSO4, NetFeature.HOST_TSO6),
    "SEGMENTATION_NOT_NEGOTIATED": (NetFeature.HOST_TSO4, NetFeature.HOST_ECN),
}


@pytest.mark.parametrize(("name", "length", "header"), WRONG)
def test_wrong_packets_are_dropped_by_name(
    name: str, length: int, header: PacketHeader, net: MemoryNet
) -> None:
    lacking = LACKING.get(name, ())
    lacking += (NetFeature.HOST_ECN,) if lacking else ()
    with without(net, *lacking, mtu=1400) as driver:
        assert driver.transmit(bytes(length), header=header) == 1
        assert net.take() == []
        assert driver.device.counters[f"transmit_rejected_{name.lower()}"] == 1
        driver.transmit(frame())
        assert len(net.take()) == 1


@pytest.mark.parametrize("pieces", [[b"12345678901"], [PLAIN.pack(), bytes(60)]])
def test_what_is_no_packet_breaks_the_queue(driver: VirtioNetDriver, pieces: list[bytes]) -> None:
    """Shorter than a header; or with a part to write."""
    driver.transmit_ring().send(pieces, 0 if len(pieces) == 1 else 10)
    driver.transmit_ring().kick()
    assert Status.NEEDS_RESET in driver.status
    assert driver.device.counters["rejected_malformed_request"] == 1


def test_a_network_that_takes_no_more(driver: VirtioNetDriver, net: MemoryNet) -> None:
    """Packets stay in the ring, nothing is in flight, and they go out in order."""
    net.capacity = 2
    frames = [frame() for _ in range(5)]
    assert driver.transmit(*frames) == 2
    assert driver.device.virtio.queues[1].in_flight == {}
    assert driver.device.virtio.queues[1].save().last_available == 2
    sent = []
    for _ in range(3):
        sent += net.take()
    assert sent == frames
    assert driver.transmitted() == 3


# Reception (5.1.6.3, 5.1.6.4).


def test_packets_come_in(driver: VirtioNetDriver, net: MemoryNet) -> None:
    frames = [frame(length) for length in (14, 60, 1514)]
    net.feed(*frames)
    assert driver.received() == []
    driver.give(8)
    assert driver.received() == [Packet(PLAIN._replace(num_buffers=1), data) for data in frames]
    assert driver.interrupts(1)


def test_buffers_are_merged(driver: VirtioNetDriver, net: MemoryNet) -> None:
    """5.1.6.4.1: all but the last are used completely."""
    data = frame(5000)
    header = SEGMENTS._replace(gso_size=1000)
    net.feed(data, header=header.pack())
    driver.give(5, 1000)
    assert driver.received() == []
    assert driver.device.virtio.queues[0].in_flight == {}
    driver.give(1, 1000)
    (packet,) = driver.received()
    assert packet == Packet(header._replace(num_buffers=6), data)


def test_a_large_packet_fits_whatever_there_is(driver: VirtioNetDriver, net: MemoryNet) -> None:
    data = frame(LARGEST_FRAME)
    net.feed(data, header=SEGMENTS.pack())
    for size in (12, 1, 4096, 60000, 4096):
        driver.give(1, size)
    (packet,) = driver.received()
    assert packet.frame == data
    assert packet.header.num_buffers == 5


def test_without_merging_a_packet_needs_one_buffer(net: MemoryNet) -> None:
    with without(net, NetFeature.MRG_RXBUF) as driver:
        net.feed(frame(1500), data := frame(100))
        driver.give(1, 1000)
        assert driver.received() == [Packet(PLAIN._replace(num_buffers=1), data)]
        assert driver.device.counters["receive_dropped_small_buffers"] == 1


def test_a_packet_that_all_buffers_can_t_hold(net: MemoryNet) -> None:
    with VirtioNetDriver(function(net, queue_size=4)) as driver:
        net.feed(frame(1500), data := frame(100))
        driver.give(4, 200)
        assert [packet.frame for packet in driver.received()] == [data]
        assert driver.device.counters["receive_dropped_small_buffers"] == 1


@pytest.mark.parametrize("room", [11, 0])
def test_buffers_that_are_none_break_the_queue(driver: VirtioNetDriver, net: MemoryNet, room: int) -> None:
    driver.receive_ring().send(b"" if room else b"readable", room)
    driver.receive_ring().kick()
    net.feed(frame())
    assert driver.device.counters["rejected_malformed_request"] == 1
    assert Status.NEEDS_RESET in driver.status


def test_a_checksum_for_a_driver_that_takes_none(net: MemoryNet) -> None:
    """5.1.6.4.1: without GUEST_CSUM flags are 0; the checksum is completed here."""
    guest = (NetFeature.GUEST_CSUM, NetFeature.GUEST_TSO4, NetFeature.GUEST_TSO6, NetFeature.GUEST_ECN)
    with without(net, *guest) as driver:
        data = bytearray(frame(101))
        data[50:52] = bytes(2)  # the sum of a pseudo header that is 0
        net.feed(bytes(data), header=CHECKSUM.pack())
        net.feed(bytes(data), header=PLAIN._replace(flags=HeaderFlag.DATA_VALID).pack())
        net.feed(frame(2000), header=SEGMENTS.pack())
        driver.give(4)
        first, second = driver.received()
        assert (first.header, second) == (second.header, Packet(PLAIN._replace(num_buffers=1), bytes(data)))
        assert _sum(first.frame[34:]) == 0xFFFF
        assert first.frame[:50] + first.frame[52:] == data[:50] + data[52:]
        assert driver.device.counters["receive_dropped_offload"] == 1


def _sum(data: bytes) -> int:
    """One's complement sum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_checksums_that_are_outside_stay_away() -> None:
    data = bytearray(frame(60))
    before = bytes(data)
    complete_checksum(data, 50, 9)
    assert data == before


def test_packets_over_the_mtu_are_not_passed(net: MemoryNet) -> None:
    """5.1.4.1; a VLAN's tag is no part of it."""
    with without(net, mtu=1400) as driver:
        assert driver.config(10, 2) == 1400
        net.feed(frame(1400 + 14 + 4), frame(1400 + 14 + 4 + 1))
        driver.give(4)
        assert len(driver.received()) == 1
        assert driver.device.counters["receive_dropped_over_mtu"] == 1


def test_many_packets_let_others_have_their_turn(driver: VirtioNetDriver, net: MemoryNet) -> None:
    """More than a batch, with no kick and no notice in between."""
    frames = [frame() for _ in range(600)]
    net.feed(*frames)
    got: list[bytes] = []
    while len(got) < 600:
        driver.give(200, 100)
        got += [packet.frame for packet in driver.received()]
    assert got == frames


# The link, and what names a network.


def test_the_link(driver: VirtioNetDriver, net: MemoryNet) -> None:
    device = driver.device.virtio
    device.set_link(False)
    assert driver.config(6, 2) == 0
    assert driver.interrupts(0) == 1
    driver.give(4)
    net.feed(frame())
    assert driver.transmit(frame()) == 1
    assert (net.take(), driver.received()) == ([], [])
    counters = driver.device.counters
    assert (counters["receive_dropped_link_down"], counters["transmit_dropped_link_down"]) == (1, 1)
    device.set_link(True)
    assert driver.config(6, 2) == 1
    net.feed(frame())
    assert len(driver.received()) == 1


def test_the_link_is_down_while_nobody_is_there(driver: VirtioNetDriver, net: MemoryNet) -> None:
    net.connect(False)
    assert driver.config(6, 2) == 0
    driver.device.virtio.set_link(False)
    net.connect()
    assert driver.config(6, 2) == 0
    driver.device.virtio.set_link(True)
    assert driver.config(6, 2) == 1


def test_what_a_paused_device_missed(driver: VirtioNetDriver, net: MemoryNet) -> None:
    driver.give(4)
    driver.device.pause()
    net.feed(frame())
    net.connect(False)
    assert driver.received() == []
    driver.device.resume()
    assert driver.config(6, 2) == 0
    net.connect()
    net.feed(data := frame())
    assert [packet.frame for packet in driver.received()] == [data]


def test_a_capture(net: MemoryNet, tmp_path: Path) -> None:
    path = tmp_path / "net.pcap"
    device = NetFunction(backend=net, pcap=path, mac="52:54:00:12:34:56")
    with VirtioNetDriver(device) as driver:
        out, coming = frame(100), frame(200)
        driver.transmit(out)
        net.feed(coming, b"short")
        driver.give()
        driver.transmit(b"short")
        assert driver.device.describe()["pcap_packets"] == 2
    data = path.read_bytes()
    assert struct.unpack_from("<IHHiIII", data) == (0xA1B23C4D, 2, 4, 0, 0, 262144, 1)
    found, at = [], 24
    while at < len(data):
        _, nanoseconds, captured, length = struct.unpack_from("<IIII", data, at)
        assert nanoseconds < 1_000_000_000
        assert captured == length
        found.append(data[at + 16 : at + 16 + length])
        at += 16 + length
    assert found == [out, coming]


def test_the_network_is_closed_with_the_device(net: MemoryNet) -> None:
    function(net).close()
    assert net.closed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "needs one network"),
        ("passt=on,tap=tap0", "needs one network"),
        ("peer=file:x", "names no network peer"),
        ("peer=fd:x", "names no network peer"),
        ("peer=unix:/nowhere,forward=80:80", "only passt"),
        ("peer=unix:/nowhere,mac=52:54:00:12:34", "no MAC address"),
        ("peer=unix:/nowhere,mac=53:54:00:12:34:56", "no address of one interface"),
        ("peer=unix:/nowhere,mtu=67", "an MTU is 68 to 65535"),
        ("peer=unix:/nowhere,queues=2", "has 1 queue pairs, not 2"),
        ("peer=unix:/nowhere,queue_size=3", "power of two"),
        ("tap=a-name-that-is-too-long", "no name of an interface"),
        ("tap=a/b", "no name of an interface"),
        ("tap=t,queues=0", "1 to 256 queues"),
        ("peer=unix:/nowhere,pcap=/nowhere/x.pcap", "/nowhere/x.pcap"),
    ],
)
def test_wrong_options_are_refused(options: str, message: str) -> None:
    with pytest.raises(IolaneError, match=message):
        create(f"net,{options}".rstrip(","))


def test_by_name(tmp_path: Path) -> None:
    device = create(f"net,peer=listen:{tmp_path / 'peer'},mtu=9000,link=off")
    assert isinstance(device, NetFunction)
    again = create(f"net,peer=unix:{tmp_path / 'other'}")
    assert isinstance(again, NetFunction)
    assert device.virtio.mac != again.virtio.mac
    assert device.virtio.mac[0] & 3 == 2
    assert not device.virtio.link_up
    bare = create_virtio(f"net,peer=unix:{tmp_path / 'third'}")
    assert isinstance(bare, BareNet)
    assert [queue.name for queue in bare.queues] == ["receive0", "transmit0"]
    assert not bare.offered >> NetFeature.CTRL_VQ & 1
    for made in (device, again, bare):
        made.close()


def test_headers_are_of_one_size() -> None:
    assert HEADER.size == 12
