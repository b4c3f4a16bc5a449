"""Messages that are none, and file descriptors that come with them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import pytest

from iolane.carriers.vhost_user import Rejection, VhostUserServer
from iolane.carriers.vhost_user.protocol import HEADER, HeaderFlag, Request
from tests.unit.carriers.vhost_user.sample import RawFront, open_fds

Rejected = Callable[[Rejection], int]
CUT = HEADER.pack(2, 1, 8)


def test_a_message_may_come_byte_by_byte(raw: RawFront) -> None:
    for byte in HEADER.pack(Request.SET_FEATURES, 9, 8) + (1 << 32).to_bytes(8, "little"):
        raw.socket.send(bytes([byte]))
    assert raw.receive() == (Request.SET_FEATURES, bytes(8))


def test_many_messages_may_come_at_once(raw: RawFront) -> None:
    raw.socket.sendall(HEADER.pack(Request.GET_FEATURES, 1, 0) * 100)
    for _ in range(100):
        assert raw.receive()[0] == Request.GET_FEATURES


@pytest.mark.parametrize(
    ("header", "rejection"),
    [
        (HEADER.pack(1, 0, 0), Rejection.MESSAGE_VERSION),
        (HEADER.pack(1, 2, 0), Rejection.MESSAGE_VERSION),
        (HEADER.pack(1, 1, 4097), Rejection.MESSAGE_TOO_LONG),
        (HEADER.pack(1, 1, 0xFFFF_FFFF), Rejection.MESSAGE_TOO_LONG),
        (HEADER.pack(1, 1 | HeaderFlag.REPLY, 0), Rejection.UNEXPECTED_REPLY),
    ],
)
def test_what_is_no_message_ends_the_connection(
    server: VhostUserServer, rejected: Rejected, header: bytes, rejection: Rejection
) -> None:
    with RawFront(server.path) as raw:
        raw.socket.sendall(header)
        assert raw.ended()
    assert server.wait_idle(30)
    assert rejected(rejection) == 1


@pytest.mark.parametrize(
    "part", [HEADER.pack(2, 1, 8)[:5], HEADER.pack(2, 1, 8), HEADER.pack(2, 1, 8) + b"1"]
)
def test_a_cut_message(server: VhostUserServer, rejected: Rejected, part: bytes) -> None:
    with RawFront(server.path) as raw:
        raw.negotiate()
        raw.socket.sendall(part)
    assert server.wait_idle(30)
    assert rejected(Rejection.MESSAGE_CUT) == 1


def test_descriptors_that_no_request_takes_are_refused_and_closed(raw: RawFront, rejected: Rejected) -> None:
    fds = [os.eventfd(0) for _ in range(3)]
    before = open_fds()
    assert raw.number(Request.SET_OWNER, fds=fds) == errno.EBADF
    assert raw.u64(Request.SET_FEATURES, 1 << 32, fds=fds[:1]) == errno.EBADF
    assert rejected(Rejection.FDS_COUNT) == 2
    assert open_fds() == before
    for fd in fds:
        os.close(fd)


def test_too_many_descriptors_end_the_connection(server: VhostUserServer, rejected: Rejected) -> None:
    fds = [os.eventfd(0) for _ in range(40)]
    before = open_fds()
    with RawFront(server.path) as raw:
        raw.send(Request.SET_OWNER, fds=fds)
        assert raw.ended()
    assert server.wait_idle(30)
    assert rejected(Rejection.FDS_LOST) == 1
    assert open_fds() == before
    for fd in fds:
        os.close(fd)


def test_descriptors_with_a_later_byte_belong_to_the_message(raw: RawFront) -> None:
    fd = os.eventfd(0)
    header = HEADER.pack(Request.SET_VRING_KICK, 9, 8)
    raw.socket.sendall(header)
    socket.send_fds(raw.socket, [bytes(8)], [fd])
    assert raw.receive() == (Request.SET_VRING_KICK, bytes(8))
    os.close(fd)


def test_what_came_before_the_end_is_closed(server: VhostUserServer) -> None:
    fd = os.eventfd(0)
    before = open_fds()
    with RawFront(server.path) as raw:
        assert raw.number(Request.GET_FEATURES), "the server has taken the connection"
        socket.send_fds(raw.socket, [HEADER.pack(Request.SET_VRING_KICK, 9, 8)], [fd])
    assert server.wait_idle(30)
    assert open_fds() == before
    os.close(fd)
