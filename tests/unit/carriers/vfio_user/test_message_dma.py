"""DMA by messages: DMA_READ and DMA_WRITE to the client."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import pytest

from iolane.carriers.vfio_user import Rejection, VfioUserClient, VfioUserServer
from iolane.carriers.vfio_user.message_dma import TIMEOUT_S
from iolane.carriers.vfio_user.protocol import HEADER
from iolane.carriers.vfio_user.version import Capabilities
from iolane.model.dma import FaultReason
from tests.unit.carriers.vfio_user.sample import PAGE, RawClient, Sample

ADDRESS, VALUE, KICK = 0x10, 0x18, 0x1C


@pytest.fixture
def memory(client: VfioUserClient) -> bytearray:
    memory = bytearray(PAGE)
    client.dma_map(0x8000, PAGE, memory=memory)
    client.write(0, ADDRESS, 8, 0x8010)
    return memory


def test_inside_a_handler_whose_reply_is_due_it_is_refused_at_once(
    client: VfioUserClient, device: Sample, memory: bytearray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU would wait 5 s for both replies and give up; a server that waited here would not be waited for."""
    limit(monkeypatch, 1000)
    client.write(0, KICK, 4, 1)
    assert list(device.faults) == [FaultReason.INDIRECT_FAILED]
    assert client.served == 0
    assert client.read(0, 0, 4) == 0


def test_inside_a_posted_write_it_works(client: VfioUserClient, device: Sample, memory: bytearray) -> None:
    memory[0x10:0x14] = b"\1\2\3\4"
    client.write(0, KICK, 4, 1, posted=True)
    client.serve_one()
    assert client.read(0, VALUE, 4) == 0x04030201
    assert not device.faults
    client.write(0, VALUE, 4, 0x55667788)
    client.write(0, KICK, 4, 2, posted=True)
    client.serve_one()
    client.read(0, 0, 4)
    assert bytes(memory[0x10:0x14]) == b"\x88\x77\x66\x55"
    assert client.served == 2


def test_requests_that_arrive_before_the_answer_are_served(
    client: VfioUserClient, device: Sample, memory: bytearray
) -> None:
    """As a vCPU of QEMU's would wait for them."""
    memory[0x10:0x14] = b"\7\0\0\0"
    client.write(0, KICK, 4, 1, posted=True)
    request = struct.pack("<QII", 0, 0, 4)
    first = client.send(9, request)
    second = client.send(9, request)
    asked = client.receive()
    assert asked.command == 11
    assert client.receive().id == first  # served while the answer to DMA_READ is awaited
    assert client.receive().id == second
    client._serve(asked, client.socket)
    assert client.read(0, VALUE, 4) == 7
    assert not device.faults


def test_from_a_task_it_works_while_the_connection_serves(
    client: VfioUserClient, device: Sample, memory: bytearray
) -> None:
    memory[0x10:0x14] = b"\x09\0\0\0"
    client.write(0, KICK, 4, 3)
    if not client.served:
        client.serve_one()
    assert device.kicked.acquire(timeout=30)
    assert client.read(0, VALUE, 4) == 9
    assert not device.faults


def test_long_transfers_go_in_pieces(client: VfioUserClient, device: Sample) -> None:
    size = 40 * PAGE
    memory = bytearray(range(256)) * (size // 256)
    client.dma_map(0, size, memory=memory)
    client.write(0, ADDRESS, 8, 0)
    got: list[bytes] = []
    device.tasks.run(lambda: None, lambda _: got.append(device.dma.read(0, size)), lambda _: None)
    while not got:
        if client.served < size // (16 << 10):
            client.serve_one()
    assert got[0] == bytes(memory)
    assert client.served == size // (16 << 10)


def test_a_refusal_is_a_fault(client: VfioUserClient, device: Sample) -> None:
    client.dma_map(0x8000, PAGE)  # mapped, but the client does not answer for it
    client.write(0, ADDRESS, 8, 0x8000)
    client.write(0, KICK, 4, 1, posted=True)
    client.serve_one()
    assert client.read(0, 0, 4) == 0
    assert list(device.faults) == [FaultReason.INDIRECT_FAILED]


def limit(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """How long the server waits for an answer."""
    for module in ("message_dma", "trap_loop"):
        monkeypatch.setattr(f"iolane.carriers.vfio_user.{module}.TIMEOUT_S", seconds)


def test_no_answer_is_a_fault_in_time(
    raw: RawClient, device: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 2 * TIMEOUT_S < 5, "QEMU's patience"
    limit(monkeypatch, 0.2)
    raw.ask(10, struct.pack("<QII", 4, 7, 2) + b"\6\0")
    raw.ask(2, struct.pack("<IIQQQ", 32, 3, 0, 0, PAGE))
    raw.send(10, struct.pack("<QII", KICK, 0, 4) + b"\1\0\0\0", flags=0x10)
    assert device.kicked.acquire(timeout=30)
    assert list(device.faults) == [FaultReason.INDIRECT_FAILED]
    command = raw.socket.recv(1000)
    assert HEADER.unpack_from(command)[1] == 11
    raw.ask(13)


@pytest.mark.parametrize(
    ("command", "flags", "payload", "rejection"),
    [
        (11, 1, struct.pack("<QQ", 0, 4), Rejection.WRONG_REPLY),
        (11, 1, struct.pack("<QQ", 8, 4) + bytes(4), Rejection.WRONG_REPLY),
        (11, 1, struct.pack("<QQ", 0, 5) + bytes(4), Rejection.WRONG_REPLY),
        (11, 1, b"", Rejection.WRONG_REPLY),
        (12, 1, struct.pack("<QQ", 0, 4) + bytes(4), Rejection.WRONG_REPLY),
    ],
)
def test_wrong_replies_are_faults(
    raw: RawClient,
    device: Sample,
    rejected: Callable[[Rejection], int],
    command: int,
    flags: int,
    payload: bytes,
    rejection: Rejection,
) -> None:
    raw.ask(10, struct.pack("<QII", 4, 7, 2) + b"\6\0")
    raw.ask(2, struct.pack("<IIQQQ", 32, 3, 0, 0, PAGE))
    raw.send(10, struct.pack("<QII", KICK, 0, 4) + b"\1\0\0\0", flags=0x10)
    message_id, asked, size, _, _ = HEADER.unpack_from(raw.socket.recv(32, socket.MSG_WAITALL))
    assert (asked, size) == (11, 32)
    raw.socket.sendall(HEADER.pack(message_id, command, 16 + len(payload), flags, 0) + payload)
    assert device.kicked.acquire(timeout=30)
    assert list(device.faults) == [FaultReason.INDIRECT_FAILED]
    assert rejected(rejection) == 1
    raw.ask(13)


def test_a_reply_to_nothing_is_dropped(raw: RawClient, rejected: Callable[[Rejection], int]) -> None:
    raw.send(11, struct.pack("<QQ", 0, 4), flags=1)
    raw.ask(13)
    assert rejected(Rejection.UNEXPECTED_REPLY) == 1


def test_who_waits_when_the_client_goes_gets_a_fault(server: VfioUserServer, device: Sample) -> None:
    with VfioUserClient(server.path) as client:
        client.negotiate()
        client.config_write(4, 2, 0x6)
        client.dma_map(0, PAGE)
        client.write(0, ADDRESS, 8, 0)
        # Posted: while a reply is awaited the client would answer a DMA_READ that comes before it.
        client.write(0, KICK, 4, 3, posted=True)
        assert client.receive().command == 11
    assert server.wait_idle(30)
    assert device.kicked.acquire(timeout=30)
    assert list(device.faults) == [FaultReason.INDIRECT_FAILED]


def test_with_a_twin_socket_it_works_everywhere(server: VfioUserServer, device: Sample) -> None:
    memory = bytearray(PAGE)
    with VfioUserClient(server.path) as client:
        agreed = client.negotiate(Capabilities(max_msg_fds=8), twin_socket=True)
        assert agreed.twin_socket is not None
        assert agreed.twin_socket.supported
        client.config_write(4, 2, 0x6)
        client.dma_map(0, PAGE, memory=memory)
        client.write(0, ADDRESS, 8, 0x20)
        client.write(0, VALUE, 4, 0x11223344)
        client.write(0, KICK, 4, 2)  # inside a handler whose reply is due
        assert bytes(memory[0x20:0x24]) == b"\x44\x33\x22\x11"
        memory[0x20] = 0x99
        client.write(0, KICK, 4, 1)
        assert client.read(0, VALUE, 4) == 0x11223399
        assert client.served == 2
    assert not device.faults
