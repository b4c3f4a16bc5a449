"""Where messages end, whose descriptors are whose, and what ends a connection."""

from __future__ import annotations

import os
import resource
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

import pytest

from iolane.carriers.vfio_user import Rejection, VfioUserClient, VfioUserServer
from iolane.carriers.vfio_user.protocol import HEADER, MAX_MESSAGE_SIZE
from iolane.model.interrupts import InterruptIndex
from tests.unit.carriers.vfio_user.sample import PAGE, RawClient, Sample, memory_fd, open_fds


def write(value: int, flags: int = 0x10) -> bytes:
    return HEADER.pack(7, 10, 36, flags, 0) + struct.pack("<QIII", 0, 0, 4, value)


def read(message_id: int = 7) -> bytes:
    return HEADER.pack(message_id, 9, 32, 0, 0) + struct.pack("<QII", 0, 0, 4)


def dma_map(page: int) -> bytes:
    return HEADER.pack(7, 2, 48, 0, 0) + struct.pack("<IIQQQ", 32, 3, 0, page * PAGE, PAGE)


def test_many_messages_in_one_send(raw: RawClient) -> None:
    burst = b"".join(write(value) for value in range(3000)) + read()
    raw.socket.sendall(burst)
    _, _, data = raw.receive()
    assert data[16:] == (2999).to_bytes(4, "little")


def test_messages_byte_by_byte(raw: RawClient) -> None:
    for byte in write(5) + read():
        raw.socket.send(bytes([byte]))
    assert raw.receive()[2][16:] == b"\5\0\0\0"


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 31, 33, 40])
def test_messages_in_two_parts(raw: RawClient, cut: int) -> None:
    stream = write(9) + read()
    raw.socket.send(stream[:cut])
    raw.socket.send(stream[cut:])
    assert raw.receive()[2][16:] == b"\x09\0\0\0"


def test_the_longest_message(raw: RawClient) -> None:
    data = bytes(1 << 20)
    assert raw.refused(10, struct.pack("<QII", 0, 0, len(data)) + data) == Rejection.REGION_RANGE.error


def test_descriptors_belong_to_the_last_message_of_a_read(raw: RawClient, device: Sample) -> None:
    """As QEMU sends them: one sendmsg a message, several waiting when the server reads."""
    ram = memory_fd(4 * PAGE)
    before = open_fds()
    with device.lock:  # the server waits for it in the first message
        raw.socket.send(HEADER.pack(7, 10, 36, 0, 0) + struct.pack("<QIII", 0, 0, 4, 1))
        for page in range(4):
            raw.socket.send(write(page))
            socket.send_fds(raw.socket, [dma_map(page)], [ram])
            raw.socket.send(write(page))
    for _ in range(5):
        flags, error, _ = raw.receive()
        assert flags == 1, os.strerror(error)
    assert [item[3].value for item in device.dma.maps] == ["file"] * 4
    assert open_fds() == before
    os.close(ram)


def test_descriptors_of_a_message_in_parts(raw: RawClient, device: Sample) -> None:
    ram = memory_fd(PAGE)
    message = dma_map(0)
    socket.send_fds(raw.socket, [write(1) + message[:20]], [ram])
    raw.socket.send(message[20:] + write(2))
    assert raw.receive()[0] == 1
    raw.socket.send(dma_map(1)[:16])
    socket.send_fds(raw.socket, [dma_map(1)[16:]], [ram])
    assert raw.receive()[0] == 1
    assert [item[3].value for item in device.dma.maps] == ["file", "file"]
    os.close(ram)


@pytest.mark.parametrize("command", [9, 10, 13, 4, 99])
def test_descriptors_with_other_commands_are_closed(
    raw: RawClient, rejected: Callable[[Rejection], int], command: int
) -> None:
    ram = memory_fd()
    before = open_fds()
    payload = {9: struct.pack("<QII", 0, 0, 4), 10: struct.pack("<QIII", 0, 0, 4, 1)}.get(command, b"")
    assert raw.refused(command, payload, fds=[ram] * 5)
    assert open_fds() == before
    assert rejected(Rejection.FDS_UNWANTED) + rejected(Rejection.UNKNOWN_COMMAND) == 1
    os.close(ram)


def test_more_descriptors_than_a_process_may_open(
    raw: RawClient, rejected: Callable[[Rejection], int]
) -> None:
    fds = [os.eventfd(0) for _ in range(20)]
    before = open_fds()
    payload = struct.pack("<IIIII", 20, 0x24, InterruptIndex.MSIX, 0, 20)
    filling: list[int] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 40, hard))
    try:
        with suppress(OSError):
            while True:
                filling.append(os.dup(fds[0]))
        for _ in range(3):
            os.close(filling.pop())
        error = raw.refused(8, payload, fds=fds)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert error == Rejection.FDS_LOST.error
    assert rejected(Rejection.FDS_LOST) == 1
    for fd in fds + filling:
        os.close(fd)
    assert open_fds() == before - 20


def test_cloud_hypervisor_sends_all_eventfds_in_one_message(raw: RawClient) -> None:
    fds = [os.eventfd(0) for _ in range(40)]
    raw.ask(8, struct.pack("<IIIII", 20, 0x24, InterruptIndex.MSIX, 0, 40), fds=fds)
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize(
    ("header", "rejection"),
    [
        (HEADER.pack(7, 9, 0, 0, 0), Rejection.MESSAGE_TOO_SHORT),
        (HEADER.pack(7, 9, 15, 0, 0), Rejection.MESSAGE_TOO_SHORT),
        (HEADER.pack(7, 9, MAX_MESSAGE_SIZE + 1, 0, 0), Rejection.MESSAGE_TOO_LONG),
        (HEADER.pack(7, 9, 0xFFFF_FFFF, 0, 0), Rejection.MESSAGE_TOO_LONG),
    ],
)
def test_sizes_that_end_the_connection(
    server: VfioUserServer, rejected: Callable[[Rejection], int], header: bytes, rejection: Rejection
) -> None:
    with RawClient(server.path) as raw:
        raw.negotiate()
        raw.socket.sendall(write(3) + header + bytes(100))
        assert raw.ended()
    assert server.wait_idle(30)
    assert rejected(rejection) == 1
    with VfioUserClient(server.path) as client:
        client.negotiate()
        assert client.read(0, 0, 4) == 3


@pytest.mark.parametrize("length", [1, 16, 40])
def test_a_client_that_goes_inside_a_message(
    server: VfioUserServer, rejected: Callable[[Rejection], int], length: int
) -> None:
    ram = memory_fd()
    before = open_fds()
    with RawClient(server.path) as raw:
        raw.negotiate()
        socket.send_fds(raw.socket, [dma_map(0)[:length]], [ram, ram])
    assert server.wait_idle(30)
    assert rejected(Rejection.MESSAGE_CUT) == 1
    assert open_fds() == before
    os.close(ram)


def test_unknown_commands_and_types(raw: RawClient, rejected: Callable[[Rejection], int]) -> None:
    for command in (0, 14, 19, 0xFFFF):
        assert raw.refused(command) == 95  # ENOTSUP
    assert rejected(Rejection.UNKNOWN_COMMAND) == 4
    for command in (11, 12):
        raw.refused(command, struct.pack("<QQ", 0, 4))
    assert rejected(Rejection.WRONG_DIRECTION) == 2
    for flags in (2, 0xF):
        raw.refused(9, struct.pack("<QII", 0, 0, 4), flags=flags)
    assert rejected(Rejection.MESSAGE_TYPE) == 2


def test_what_is_wrong_in_a_posted_command_is_counted_only(
    raw: RawClient, rejected: Callable[[Rejection], int]
) -> None:
    raw.send(10, struct.pack("<QIII", 4096, 0, 4, 1), flags=0x10)
    raw.send(99, flags=0x10)
    raw.send(13, b"x", flags=0x10)
    raw.ask(13, b"")
    assert rejected(Rejection.REGION_RANGE) == 1
    assert rejected(Rejection.UNKNOWN_COMMAND) == 1
    assert rejected(Rejection.PAYLOAD_SIZE) == 1


def test_unknown_flag_bits_are_ignored(raw: RawClient) -> None:
    assert raw.ask(9, struct.pack("<QII", 0, 0, 4), flags=0x100)[16:] == bytes(4)
