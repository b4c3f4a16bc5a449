"""The server's life: one front end after another, each cleaned up after."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from iolane.carriers.vhost_user import (
    EventKind,
    FrontEnd,
    SharedMemory,
    SocketError,
    VhostUserClient,
    VhostUserError,
    VhostUserServer,
)
from iolane.model.virtio.queue import nobody
from iolane.model.workers import Workers
from iolane.testing.drivers.virtio import DriverMemory
from tests.unit.carriers.vhost_user.sample import ECHO, HELD, WANTED, Driver, Sample, open_fds


def start_ring(front: FrontEnd, memory: SharedMemory, index: int = ECHO) -> Driver:
    heap = DriverMemory(memory.view, memory.guest_address)
    driver = Driver(heap, front.kicker(index), front.rings[index].wait_call)
    front.start(index, driver.ring)
    return driver


def test_one_front_end_after_another(server: VhostUserServer, memory: SharedMemory, device: Sample) -> None:
    before = open_fds()
    for number in range(5):
        with FrontEnd(server.path, [memory], wanted=WANTED) as front:
            assert server.connected
            assert start_ring(front, memory).ask(b"ab") == b"ba"
        assert server.wait_idle(30)
        assert not server.connected
        assert not device.dma.maps
        assert device.queues[ECHO].ring is None
        assert device.queues[ECHO].interrupt is nobody
        assert device.config_interrupt is nobody
        assert server.statistics.connections == number + 1
    assert open_fds() == before
    assert [event.kind for event in server.events] == [EventKind.CONNECTED, EventKind.DISCONNECTED] * 5


def test_the_next_front_end_waits_for_the_one_before(server: VhostUserServer, memory: SharedMemory) -> None:
    with FrontEnd(server.path, [memory], wanted=WANTED) as front:
        waiting = VhostUserClient(server.path, timeout=0.05)
        with pytest.raises(VhostUserError, match="no answer in time"):
            waiting.get_features()
        assert start_ring(front, memory).ask(b"ab") == b"ba"
    waiting.socket.settimeout(30)
    assert waiting.reply(1).payload
    waiting.close()


def test_a_front_end_that_vanishes_with_work_in_flight(
    server: VhostUserServer, memory: SharedMemory, device: Sample
) -> None:
    """What was taken is finished before its memory goes."""
    device.gate.clear()
    with FrontEnd(server.path, [memory], wanted=WANTED, rings=2) as front:
        driver = start_ring(front, memory, HELD)
        for _ in range(8):
            driver.ring.send(b"ab", 2)
        driver.ring.kick()
        while len(device.seen) < 8:
            front.client.get_features()
    assert not server.wait_idle(0.05)
    device.gate.set()
    assert server.wait_idle(30)
    assert len(driver.ring.collect()) == 8


def test_stop_throws_the_front_end_out(device: Sample, memory: SharedMemory, tmp_path: Path) -> None:
    before = open_fds()
    with Workers(2) as workers:
        server = VhostUserServer(device, tmp_path / "s", workers=workers)
        server.start()
        front = FrontEnd(server.path, [memory], wanted=WANTED)
        front.connect()
        start_ring(front, memory).ask(b"ab")
        server.stop()
        server.stop()
        assert not server.running
        with pytest.raises(VhostUserError):
            front.client.get_features()
        assert not server.path.exists()
        server.start()
        front.reconnect()
        front.close()
        server.stop()
    assert open_fds() == before
    assert not [thread for thread in threading.enumerate() if "kicks" in thread.name]


def test_a_front_end_that_comes_back(server: VhostUserServer, memory: SharedMemory) -> None:
    """QEMU's `reconnect-ms`: rings go on where they were."""
    with FrontEnd(server.path, [memory], wanted=WANTED) as front:
        driver = start_ring(front, memory)
        for number in range(6):
            assert driver.ask(b"ab") == b"ba"
            front.disconnect()
            driver.ring.send(b"cd%d" % number, 3)
            driver.ring.kick()
            front.reconnect()
            assert driver.answers(1)[0].data == b"%ddc" % number
        assert front.stop(ECHO) == 12


def test_paths_in_use_are_refused(server: VhostUserServer, device: Sample) -> None:
    with pytest.raises(SocketError, match="in use"):
        VhostUserServer(device, server.path).start()


def test_without_workers_tasks_run_at_once(device: Sample, memory: SharedMemory, tmp_path: Path) -> None:
    with VhostUserServer(device, tmp_path / "s") as server:
        with FrontEnd(server.path, [memory], wanted=WANTED, rings=2) as front:
            assert start_ring(front, memory, HELD).ask(b"ab") == b"ba"
        assert server.wait_idle(30)


def test_statistics(server: VhostUserServer, memory: SharedMemory) -> None:
    with FrontEnd(server.path, [memory], wanted=WANTED) as front:
        start_ring(front, memory).ask(b"ab")
        counts = server.statistics.as_dict()
        assert counts["ring_starts"] == 1
        assert counts["messages"] > 10
        assert not [name for name in counts if name.startswith("rejected")]
