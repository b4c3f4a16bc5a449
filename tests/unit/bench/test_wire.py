"""The network of guests that move: its host asks, its switch follows the guest."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.bench.wire import (
    GUEST,
    GUEST_MAC,
    HOST,
    HOST_MAC,
    LENGTH,
    Wire,
    answer_to_arp,
    checksum,
    is_answer,
    question,
)

BROADCAST = bytes([0xFF] * 6)


def frame(payload: bytes, kind: int, source: bytes = GUEST_MAC) -> bytes:
    return BROADCAST + source + struct.pack(">H", kind) + payload


def arp(target: str = HOST, operation: int = 1) -> bytes:
    fixed = struct.pack(">HHBBH", 1, 0x0800, 6, 4, operation)
    return frame(fixed + GUEST_MAC + socket.inet_aton(GUEST) + bytes(6) + socket.inet_aton(target), 0x0806)


def answer_of(asked: bytes) -> bytes:
    """What a guest makes of a question."""
    header = asked[14:26] + asked[30:34] + asked[26:30]
    return HOST_MAC + GUEST_MAC + asked[12:14] + header + b"\0" + asked[35:]


def test_a_question_is_one_that_a_kernel_answers() -> None:
    asked = question(7)
    assert checksum(asked[14:34]) == 0
    assert checksum(asked[34:]) == 0
    assert (asked[26:30], asked[30:34]) == (socket.inet_aton(HOST), socket.inet_aton(GUEST))
    assert not is_answer(asked)
    assert is_answer(answer_of(asked))


@pytest.mark.parametrize("other", [b"", bytes(41), bytes(60), arp(), arp(GUEST), answer_of(question(1))[:41]])
def test_what_is_no_answer(other: bytes) -> None:
    assert not is_answer(other)


def test_arp_is_answered_for_the_host_alone() -> None:
    answer = answer_to_arp(arp())
    assert answer is not None
    assert answer[:12] == GUEST_MAC + HOST_MAC
    assert answer[20:42] == struct.pack(">H", 2) + HOST_MAC + socket.inet_aton(HOST) + GUEST_MAC + (
        socket.inet_aton(GUEST)
    )
    for other in (arp(GUEST), arp(operation=2), arp()[:41], bytes(60)):
        assert answer_to_arp(other) is None


class Port:
    """A guest's end."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(20)
        self.socket.connect(str(path))
        self._lines = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(LENGTH.pack(len(data)) + data)

    def receive(self) -> bytes:
        [length] = LENGTH.unpack(self._lines.read(4))
        return self._lines.read(length)

    def close(self) -> None:
        self._lines.close()
        self.socket.close()


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with Wire(tmp_path / "w") as made:
        yield made


def test_the_switch_follows_the_guest(wire: Wire) -> None:
    here, there = Port(wire.path), Port(wire.path)
    here.send(arp())
    first = here.receive()
    assert first[12:14] == b"\x08\x06"
    here.send(answer_of(here.receive()))
    there.send(frame(bytes(46), 0x8035))  # RARP: the guest is here now
    for _ in range(3):
        there.send(answer_of(there.receive()))
    here.close()
    there.send(answer_of(there.receive()))
    for _ in range(2):
        there.receive()
    assert len(wire.answers) == 5
    there.close()


def test_frames_in_pieces_and_of_others(wire: Wire) -> None:
    port = Port(wire.path)
    port.send(frame(bytes(46), 0x8035, source=HOST_MAC))
    data = LENGTH.pack(len(arp())) + arp()
    for place in range(0, len(data), 5):
        port.socket.sendall(data[place : place + 5])
    assert port.receive()[12:14] == b"\x08\x06"
    port.close()


def test_silence_is_the_longest_gap(tmp_path: Path) -> None:
    wire = Wire(tmp_path / "w")
    with wire:
        wire.answers[:] = [1.0, 2.0, 2.1, 5.0, 9.0]
        assert wire.silence(1.5, 6.0) == pytest.approx(2.9)
        assert wire.silence(9.5, 12.0) == 2.5
