"""What is offered, and what may be accepted."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from iolane.carriers.vhost_user import FrontEnd, Rejection, SharedMemory, VhostUserError, VhostUserServer
from iolane.carriers.vhost_user.protocol import HeaderFlag, ProtocolFeature, Request, VhostFeature, bit
from iolane.devices.virtio.rng import Rng
from iolane.model.virtio import Status
from iolane.model.workers import Workers
from iolane.testing.drivers.virtio import DriverMemory
from tests.unit.carriers.vhost_user.sample import ECHO, Driver, Network, RawFront, Sample

Rejected = Callable[[Rejection], int]
PROTOCOL = bit(VhostFeature.PROTOCOL_FEATURES)


def test_the_device_s_features_and_the_carrier_s_are_offered(raw: RawFront, device: Sample) -> None:
    offered = raw.number(Request.GET_FEATURES)
    assert offered == device.offered | 1 << 26 | 1 << 30


def test_protocol_features_of_every_device(raw: RawFront) -> None:
    """By number: libblkio needs 3, 9 and 15, UML 3, 5 and 9; QEMU uses all."""
    offered = raw.number(Request.GET_PROTOCOL_FEATURES)
    assert offered == sum(1 << number for number in (0, 1, 3, 5, 9, 12, 13, 15, 16, 19))


def test_an_entropy_device_is_not_offered_status(tmp_path: Path) -> None:
    """QEMU's vhost-user-rng would say FEATURES_OK, and never that the driver is ready."""
    device = Rng()
    with Workers(1) as workers, VhostUserServer(device, tmp_path / "s", workers=workers) as server:
        with RawFront(server.path) as raw:
            offered = raw.number(Request.GET_PROTOCOL_FEATURES)
            assert not offered & bit(ProtocolFeature.STATUS)
            assert (
                raw.u64(Request.SET_PROTOCOL_FEATURES, offered | bit(ProtocolFeature.STATUS)) == errno.EINVAL
            )
    device.close()


def test_what_was_not_offered_is_refused(raw: RawFront, rejected: Rejected) -> None:
    assert raw.u64(Request.SET_FEATURES, 1 << 33) == errno.EINVAL
    assert rejected(Rejection.FEATURES_NOT_OFFERED) == 1
    assert raw.u64(Request.SET_PROTOCOL_FEATURES, 1 << 8) == errno.EINVAL
    assert rejected(Rejection.PROTOCOL_FEATURES) == 1


@pytest.mark.parametrize("features", [1 << 32 | 0b10, 0b01])
def test_features_that_the_device_refuses_show_at_the_first_ring(
    server: VhostUserServer, memory: SharedMemory, heap: DriverMemory, features: int, device: Sample
) -> None:
    """Feature 1 without feature 0; features without VERSION_1."""
    with FrontEnd(server.path, [memory], wanted=features | PROTOCOL) as front:
        driver = Driver(heap, front.kicker(ECHO), front.rings[ECHO].wait_call)
        with pytest.raises(VhostUserError) as refused:
            front.start(ECHO, driver.ring)
    assert refused.value.errno == errno.ENOTSUP
    assert not device.status


def test_features_are_kept_while_a_ring_runs(
    front: FrontEnd, add_driver: Callable[..., Driver], rejected: Rejected
) -> None:
    driver = add_driver()
    with pytest.raises(VhostUserError):
        front.client.set_features(front.features & ~1)
    assert rejected(Rejection.FEATURES_WHILE_RUNNING) == 1
    front.client.set_features(front.features)
    assert driver.ask(b"ab") == b"ba"


def test_another_driver_may_have_other_features(
    front: FrontEnd, add_driver: Callable[..., Driver], device: Sample
) -> None:
    """The firmware drives a disk first, then the kernel starts the rings elsewhere."""
    add_driver().ask(b"ab")
    assert device.negotiated(1)
    front.stop(ECHO)
    front.client.set_features(front.features & ~0b11)
    assert add_driver().ask(b"cd") == b"dc"
    assert not device.negotiated(1)


def test_requests_of_features_that_were_not_agreed_on(server: VhostUserServer, rejected: Rejected) -> None:
    with RawFront(server.path) as raw:
        raw.negotiate(bit(ProtocolFeature.REPLY_ACK))
        for request in (Request.RESET_DEVICE, Request.SET_STATUS, Request.ADD_MEM_REG, Request.SET_CONFIG):
            assert raw.number(request) == errno.EPERM
        assert rejected(Rejection.NOT_NEGOTIATED) == 4
        raw.send(Request.GET_STATUS)
        assert raw.ended()


def test_a_request_with_a_reply_of_its_own_is_not_acknowledged_too(raw: RawFront) -> None:
    raw.send(Request.GET_FEATURES)
    raw.send(Request.GET_QUEUE_NUM)
    assert raw.receive()[0] == Request.GET_FEATURES
    assert raw.receive()[0] == Request.GET_QUEUE_NUM


def test_nothing_is_acknowledged_unasked(raw: RawFront) -> None:
    raw.send(Request.SET_OWNER, flags=1)
    assert raw.number(Request.GET_QUEUE_NUM) == 2


def test_what_can_t_be_answered_ends_the_connection(server: VhostUserServer, rejected: Rejected) -> None:
    """A refused request that nobody acknowledges: the front end would go on without what it asked for."""
    with RawFront(server.path) as raw:
        raw.negotiate()
        raw.send(Request.SET_FEATURES, (1 << 33).to_bytes(8, "little"), flags=1)
        assert raw.ended()
    assert rejected(Rejection.FEATURES_NOT_OFFERED) == 1
    assert server.wait_idle(30)
    assert "not offered" in server.events[-1].text


@pytest.mark.parametrize("request_", [22, 23, 26, 28, 33, 35, 41, 44, 0, 4711])
def test_requests_that_were_not_advertised(raw: RawFront, rejected: Rejected, request_: int) -> None:
    assert raw.number(request_) == errno.EOPNOTSUPP
    assert rejected(Rejection.UNKNOWN_REQUEST) == 1


def test_network_devices_are_told_of_mtus_and_announce(tmp_path: Path, network: Network) -> None:
    with Workers(1) as workers, VhostUserServer(network, tmp_path / "s", workers=workers) as server:
        with RawFront(server.path) as raw:
            raw.negotiate()
            assert raw.number(Request.GET_QUEUE_NUM) == 1  # pairs
            assert raw.number(Request.GET_PROTOCOL_FEATURES) & 0b10100 == 0b10100
            assert raw.u64(Request.NET_SET_MTU, 9000) == 0
            assert network.mtu == 9000
            assert raw.u64(Request.NET_SET_MTU, 10) == errno.ERANGE
            assert raw.number(Request.SEND_RARP, b"\2\0\0\0\0\7" + bytes(2)) == 0
            assert network.announced == [b"\2\0\0\0\0\7"]
        assert server.wait_idle(30)


def test_other_devices_know_no_mtu(raw: RawFront) -> None:
    assert raw.u64(Request.NET_SET_MTU, 9000) == errno.EPERM


def test_a_bug_of_the_device_is_an_error_reply(
    raw: RawFront, device: Sample, server: VhostUserServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "reset", lambda: 1 // 0)
    assert raw.number(Request.RESET_DEVICE) == errno.EIO
    assert device.error_count == 1
    assert server.statistics.device_errors == 1
    assert raw.number(Request.GET_QUEUE_NUM) == 2


def test_status_says_whether_features_were_accepted(raw: RawFront) -> None:
    assert raw.u64(Request.SET_FEATURES, 1 << 32 | PROTOCOL | 0b10) == 0
    assert raw.u64(Request.SET_STATUS, 11) == 0
    assert raw.number(Request.GET_STATUS) == Status.ACKNOWLEDGE | Status.DRIVER
    assert raw.u64(Request.SET_FEATURES, 1 << 32 | PROTOCOL | 0b11) == 0
    assert raw.u64(Request.SET_STATUS, 11) == 0
    assert raw.number(Request.GET_STATUS) == 11


def test_replies_bear_the_reply_flag_and_version(raw: RawFront) -> None:
    raw.send(Request.GET_FEATURES)
    header = raw.socket.recv(12)
    assert header[4:8] == (1 | HeaderFlag.REPLY).to_bytes(4, "little")
    raw.socket.recv(8)
