"""The configuration space, and changes of it that the front end is told of."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import pytest

from iolane.carriers.vhost_user import FrontEnd, Rejection, SharedMemory, VhostUserError, VhostUserServer
from iolane.carriers.vhost_user.protocol import CONFIG, BackendRequest, ConfigFlag, ProtocolFeature, Request
from iolane.testing.drivers.virtio import DriverMemory
from tests.unit.carriers.vhost_user.sample import ECHO, WANTED, Driver, RawFront, Sample

AddDriver = Callable[..., Driver]
MODE = 4


@pytest.mark.parametrize("size", [1, 3, 5, 6, 57, 60, 256])
def test_as_many_bytes_as_asked_for(front: FrontEnd, size: int) -> None:
    """QEMU asks for 57 of a disk; what the device does not have is 0."""
    assert front.client.get_config(0, size) == (b"\x4d" + bytes(255))[:size]


def test_odd_pieces(front: FrontEnd) -> None:
    """As User Mode Linux reads it."""
    front.client.set_config(MODE, b"\7\x08")
    assert front.client.get_config(3, 3) == b"\0\7\x08"


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (0, 257), (255, 2), (0xFFFF_FFFF, 1), (0, 0xFFFF_FFFF)])
def test_ranges_that_can_t_be(raw: RawFront, offset: int, size: int) -> None:
    """ "uses zero length of payload to indicate an error"."""
    assert raw.ask(Request.GET_CONFIG, CONFIG.pack(offset, size, 0)) == b""
    assert raw.number(Request.SET_CONFIG, CONFIG.pack(offset, size, 0) + bytes(300)) == errno.ERANGE


def test_the_driver_writes(front: FrontEnd, device: Sample) -> None:
    front.client.set_config(MODE, b"\x21")
    assert device.config.MODE == 0x21
    assert device.modes == [0x21]


def test_read_only_fields_are_not_written(
    front: FrontEnd, device: Sample, rejected: Callable[[Rejection], int]
) -> None:
    with pytest.raises(VhostUserError) as refused:
        front.client.set_config(0, b"\1\2\3\4\5")
    assert refused.value.errno == errno.EROFS
    assert rejected(Rejection.CONFIG_READ_ONLY) == 1
    assert device.config.MODE == 0
    front.client.set_config(0, b"\x4d\0\0\0\5")  # read-only fields as they are
    assert device.config.MODE == 5
    front.client.set_config(0, b"\1\2\3\4\6", ConfigFlag.MIGRATION)
    assert (device.config.LENGTH, device.config.MODE) == (77, 6)


def test_flags_and_lengths(raw: RawFront) -> None:
    assert raw.number(Request.SET_CONFIG, CONFIG.pack(MODE, 1, 2) + b"\1") == errno.EINVAL
    assert raw.number(Request.SET_CONFIG, CONFIG.pack(MODE, 2, 0) + b"\1") == errno.ENODATA
    assert raw.number(Request.SET_CONFIG, b"\1") == errno.ENODATA


def test_what_the_driver_wrote_outlives_pauses_resets_and_front_ends(
    server: VhostUserServer, memory: SharedMemory, heap: DriverMemory, device: Sample
) -> None:
    """QEMU does not write it again; a disk whose write cache the guest had switched off must stay so."""
    with FrontEnd(server.path, [memory], wanted=WANTED) as front:
        front.client.set_config(MODE, b"\x21")
        front.client.reset_device()
        assert front.client.get_config(MODE, 1) == b"\x21"
        driver = Driver(heap, front.kicker(ECHO), front.rings[ECHO].wait_call)
        front.start(ECHO, driver.ring)
        assert device.config.MODE == 0x21
    assert server.wait_idle(30)
    assert device.config.MODE == 0
    with FrontEnd(server.path, [memory], wanted=WANTED) as front:
        assert front.client.get_config(0, 6) == b"\x4d\0\0\0\x21\0"
        front.start(ECHO, driver.ring, 0)
        assert device.config.MODE == 0x21


def test_status_zero_keeps_it_too(server: VhostUserServer, memory: SharedMemory, device: Sample) -> None:
    """SET_STATUS 0 is what QEMU sends when a machine is paused."""
    protocol = [ProtocolFeature.REPLY_ACK, ProtocolFeature.STATUS, ProtocolFeature.CONFIG]
    with FrontEnd(server.path, [memory], wanted=WANTED, protocol=protocol) as front:
        front.client.set_status(15)
        front.client.set_config(MODE, b"\x21")
        front.client.set_status(0)
        front.client.set_features(front.features)
        front.client.set_status(15)
        assert device.config.MODE == 0x21


# Changes.


def test_a_change_is_told_of(front: FrontEnd, add_driver: AddDriver, device: Sample) -> None:
    add_driver()
    channel = front.backend_channel
    assert channel is not None
    with device.lock:
        device.config_changed()
    assert channel.receive() == BackendRequest.CONFIG_CHANGE_MSG


def test_nothing_is_sent_while_the_device_is_suspended(
    front: FrontEnd, add_driver: AddDriver, device: Sample, server: VhostUserServer
) -> None:
    """ "While all vrings are stopped the device must not send any messages to the front-end"."""
    channel = front.backend_channel
    assert channel is not None
    channel.socket.setblocking(False)
    with device.lock:
        device.config_changed()
        device.config_changed()
    with pytest.raises(BlockingIOError):
        channel.receive()
    driver = add_driver()
    assert channel.receive() == BackendRequest.CONFIG_CHANGE_MSG
    with pytest.raises(BlockingIOError):
        channel.receive()
    front.stop(ECHO)
    with device.lock:
        device.config_changed()
    with pytest.raises(BlockingIOError):
        channel.receive()
    front.start(ECHO, driver.ring)
    assert channel.receive() == BackendRequest.CONFIG_CHANGE_MSG
    assert server.statistics.config_changes == 2


def test_a_front_end_that_does_not_read_stops_nobody(
    front: FrontEnd, add_driver: AddDriver, device: Sample
) -> None:
    driver = add_driver()
    with device.lock:
        for _ in range(5000):
            device.config_changed()
    assert driver.ask(b"ab") == b"ba"


def test_a_channel_that_is_none(raw: RawFront, rejected: Callable[[Rejection], int]) -> None:
    reader, writer = os.pipe()
    assert raw.number(Request.SET_BACKEND_REQ_FD, fds=[reader]) == errno.EBADFD
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    assert raw.number(Request.SET_BACKEND_REQ_FD, fds=[datagrams.fileno()]) == errno.EBADFD
    assert rejected(Rejection.FD_KIND) == 2
    assert raw.number(Request.SET_BACKEND_REQ_FD) == errno.EBADF
    ours, theirs = socket.socketpair()
    assert raw.number(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()]) == 0
    assert raw.number(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()]) == 0
    theirs.close()
    for each in (ours, datagrams):
        each.close()
    os.close(reader)
    os.close(writer)


def test_a_channel_whose_other_end_is_gone(front: FrontEnd, add_driver: AddDriver, device: Sample) -> None:
    driver = add_driver()
    assert front.backend_channel is not None
    front.backend_channel.close()
    with device.lock:
        device.config_changed()
    assert driver.ask(b"ab") == b"ba"
