"""The device's state from one back end to another ("Migrating back-end state")."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from iolane.carriers.vhost_user import FrontEnd, Rejection, SharedMemory, VhostUserError, VhostUserServer
from iolane.carriers.vhost_user.protocol import Request
from iolane.model.workers import Workers
from tests.unit.carriers.vhost_user.sample import Driver, RawFront, Sample, open_fds

AddDriver = Callable[..., Driver]
SAVE, LOAD = struct.pack("<II", 0, 0), struct.pack("<II", 1, 0)


def test_a_device_moves(front: FrontEnd, tmp_path: Path, memory: SharedMemory, device: Sample) -> None:
    front.client.set_config(4, b"\x42")
    state = front.client.save_state()
    assert state
    other = Sample()
    with Workers(1) as workers, VhostUserServer(other, tmp_path / "other", workers=workers):
        with FrontEnd(tmp_path / "other", [memory]) as there:
            there.client.load_state(state)
            assert other.config.MODE == 0x42
    other.close()


def test_a_state_that_is_larger_than_a_pipe(
    front: FrontEnd, device: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = os.urandom(1 << 20)
    loaded: list[bytes] = []
    monkeypatch.setattr(device, "save", lambda: large)
    monkeypatch.setattr(device, "load", loaded.append)
    assert front.client.save_state() == large
    front.client.load_state(large)
    assert loaded == [large]


def test_nothing_is_transferred_while_rings_run(
    front: FrontEnd, add_driver: AddDriver, rejected: Callable[[Rejection], int]
) -> None:
    add_driver()
    with pytest.raises(VhostUserError) as refused:
        front.client.save_state()
    assert refused.value.errno == errno.EBUSY
    assert rejected(Rejection.STATE_RUNNING) == 1


def test_a_wrong_state_is_refused(front: FrontEnd, device: Sample) -> None:
    for wrong in (b"", b"nonsense", b"x" * 100_000):
        with pytest.raises(VhostUserError, match="CHECK_DEVICE_STATE"):
            front.client.load_state(wrong)
    front.client.load_state(front.client.save_state())


def test_a_transfer_that_is_not_finished(raw: RawFront, rejected: Callable[[Rejection], int]) -> None:
    """The front end asks before it has closed its end, or before it has read: nobody waits."""
    reader, writer = os.pipe()
    assert raw.number(Request.SET_DEVICE_STATE_FD, LOAD, fds=[reader]) == 0x100
    os.write(writer, b"half")
    assert raw.number(Request.CHECK_DEVICE_STATE) == errno.EBADMSG
    os.close(reader)
    os.close(writer)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    while True:
        try:
            os.write(writer, bytes(4096))
        except BlockingIOError:
            break
    assert raw.number(Request.SET_DEVICE_STATE_FD, SAVE, fds=[writer]) == 0x100
    assert raw.number(Request.SET_DEVICE_STATE_FD, SAVE, fds=[writer]) == 0x100 | errno.EBUSY
    assert raw.number(Request.CHECK_DEVICE_STATE) == errno.EBADMSG
    assert rejected(Rejection.STATE_REFUSED) == 2
    os.close(reader)
    os.close(writer)


def test_what_was_not_started_can_t_be_checked(raw: RawFront) -> None:
    assert raw.number(Request.CHECK_DEVICE_STATE) == errno.EBADMSG


@pytest.mark.parametrize(("direction", "phase"), [(2, 0), (0, 1), (1, 1), (0xFFFF_FFFF, 0)])
def test_directions_and_phases(raw: RawFront, direction: int, phase: int) -> None:
    fd = os.eventfd(0)
    payload = struct.pack("<II", direction, phase)
    assert raw.number(Request.SET_DEVICE_STATE_FD, payload, fds=[fd]) == 0x100 | errno.EINVAL
    os.close(fd)


def test_the_wrong_end_of_a_pipe(raw: RawFront, rejected: Callable[[Rejection], int]) -> None:
    reader, writer = os.pipe()
    before = open_fds()
    assert raw.number(Request.SET_DEVICE_STATE_FD, SAVE, fds=[reader]) == 0x100 | errno.EBADFD & 0xFF
    assert raw.number(Request.SET_DEVICE_STATE_FD, LOAD, fds=[writer]) == 0x100 | errno.EBADFD & 0xFF
    assert raw.number(Request.SET_DEVICE_STATE_FD, SAVE) == 0x100 | errno.EBADF
    assert open_fds() == before
    assert rejected(Rejection.FD_KIND) == 2
    os.close(reader)
    os.close(writer)


def test_what_is_no_pipe(raw: RawFront, rejected: Callable[[Rejection], int]) -> None:
    with open("/dev/null", "r+b") as null:
        assert (
            raw.number(Request.SET_DEVICE_STATE_FD, SAVE, fds=[null.fileno()]) == 0x100 | errno.EBADFD & 0xFF
        )
    assert rejected(Rejection.FD_KIND) == 1


def test_a_front_end_that_goes_in_the_middle(server: VhostUserServer, memory: SharedMemory) -> None:
    before = open_fds()
    with FrontEnd(server.path, [memory]) as front:
        reader, writer = os.pipe()
        front.client.ask_u64(Request.SET_DEVICE_STATE_FD, LOAD, [reader])
        os.close(reader)
    assert server.wait_idle(30)
    os.close(writer)
    assert open_fds() == before


def test_a_reader_that_is_gone(raw: RawFront) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    assert raw.number(Request.SET_DEVICE_STATE_FD, SAVE, fds=[writer]) == 0x100
    assert raw.number(Request.CHECK_DEVICE_STATE) == errno.EBADMSG
    os.close(writer)
