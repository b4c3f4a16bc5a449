"""A front end that does with its descriptors what makes others wait: their flags are its own, too.

Without O_NONBLOCK a write to an eventfd waits while its counter is full, and a read while it is 0. On both
data planes the server answers all the same, its device's lock is free, and it ends. (The thread of a compiled
ring may wait, until the ring is to stop: that costs nobody but the peer.)
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from iolane.carriers.vhost_user import FrontEnd, SharedMemory, VhostUserServer
from iolane.carriers.vhost_user.choice import PLANES
from iolane.carriers.vhost_user.protocol import (
    DEVICE_STATE,
    PHASE_STOPPED,
    Request,
    TransferDirection,
    VhostFeature,
)
from iolane.memory.signals import take
from iolane.model.workers import Workers
from iolane.testing.drivers.virtio import DriverMemory
from tests.unit.carriers.vhost_user.sample import ECHO, MEMORY, WANTED, Driver, Sample

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(300)]
FULL = (1 << 64) - 2
PATIENCE = 20.0
"""Seconds after which somebody waits for the peer; it is a matter of milliseconds."""
ROUNDS = 300
LOG_SIZE = 0x1_0000_0000 // 4096 // 8 + MEMORY // 4096 // 8


def make_waiting(fd: int) -> None:
    """The next write waits, for ever."""
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
    empty(fd)
    os.eventfd_write(fd, FULL)


def empty(fd: int) -> bool:
    try:
        return take(fd)
    except BlockingIOError:
        return False


class Peer:
    """A front end, the served device, and what ends a wait where the server does wait."""

    def __init__(self, path: Path, plane: str, memory: SharedMemory) -> None:
        self.workers = Workers(2)
        self.device = Sample()
        self.server = VhostUserServer(self.device, path, workers=self.workers, plane=PLANES[plane])
        self.server.start()
        self.front = FrontEnd(path, [memory], rings=2, wanted=WANTED)
        self.front.connect()
        self.memory = memory
        self.heap = DriverMemory(memory.view, memory.guest_address)
        self.ring = self.front.rings[ECHO]
        self.driver = Driver(self.heap, self.front.kicker(ECHO), self.ring.wait_call)
        self.rescue: Callable[[], object] = lambda: empty(self.ring.call_fd)

    def start(self) -> None:
        self.front.start(ECHO, self.driver.ring)

    def ask(self) -> None:
        """A request, whose answer is seen in the used ring."""
        self.driver.ring.send(b"ab", 2)
        self.driver.ring.kick()
        self.wait(lambda: self.driver.ring.outstanding == 0 or bool(self.driver.ring.collect()))

    def wait(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not happened():
            assert time.monotonic() < deadline
            time.sleep(0)

    def within(self, what: Callable[[], object]) -> None:
        """It must come to an end, whatever the peer does."""
        thread = threading.Thread(target=what)
        thread.start()
        thread.join(PATIENCE)
        waits = thread.is_alive()
        while thread.is_alive():
            self.rescue()
            thread.join(0.01)
        assert not waits, "somebody waits for the peer"

    def lock_is_free(self) -> None:
        def take_lock() -> None:
            with self.device.lock:
                pass

        self.within(take_lock)

    def stop_ring(self, base: int) -> None:
        bases: list[int] = []
        self.within(lambda: bases.append(self.front.stop(ECHO)))
        assert bases == [base]

    def close(self) -> None:
        self.within(self.server.stop)
        self.front.close()
        self.device.close()
        self.workers.close()


@pytest.fixture(params=sorted(PLANES))
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Peer]:
    with SharedMemory(MEMORY) as memory:
        peer = Peer(tmp_path / "s", request.param, memory)
        yield peer
        peer.close()


# What we write to.


def test_an_interrupt_that_would_wait(peer: Peer) -> None:
    peer.start()
    for number in range(3):
        make_waiting(peer.ring.call_fd)
        peer.ask()
        peer.lock_is_free()
        peer.stop_ring(number + 1)
        peer.front.start(ECHO, peer.driver.ring, number + 1)


def test_the_interrupt_of_a_start_would_wait(peer: Peer) -> None:
    """A ring that starts interrupts at once: it may have owed one."""
    make_waiting(peer.ring.call_fd)
    client = peer.front.client
    client.set_vring_call(ECHO, peer.ring.call_fd)
    make_waiting(peer.ring.call_fd)
    peer.within(peer.start)
    peer.lock_is_free()
    peer.within(lambda: client.set_vring_call(ECHO, peer.ring.call_fd))
    peer.within(client.get_features)


def test_an_interrupt_that_would_wait_and_a_pause(peer: Peer) -> None:
    """Somebody else than the front end has the device rest: the control socket, say."""
    peer.start()
    make_waiting(peer.ring.call_fd)
    peer.ask()
    peer.within(peer.device.pause)
    peer.within(peer.device.resume)
    peer.ask()
    peer.stop_ring(2)


def test_interrupts_that_are_owed_are_there_in_the_end(peer: Peer) -> None:
    """Who is made to wait and set free has signalled."""
    peer.start()
    make_waiting(peer.ring.call_fd)
    peer.ask()
    peer.stop_ring(1)
    assert empty(peer.ring.call_fd)


def test_an_error_that_would_wait(peer: Peer) -> None:
    peer.start()
    peer.rescue = lambda: empty(peer.ring.error_fd)
    make_waiting(peer.ring.error_fd)
    peer.driver.ring.offer(4711)
    peer.driver.ring.kick()
    peer.ring.kick()
    peer.wait(lambda: peer.device.counters["rejected_head_out_of_range"] == 1)
    peer.lock_is_free()
    peer.stop_ring(0)


def test_a_log_that_would_wait(peer: Peer) -> None:
    log, signal = os.memfd_create("log"), os.eventfd(0, os.EFD_NONBLOCK)
    os.ftruncate(log, LOG_SIZE)
    peer.rescue = lambda: empty(signal)
    client = peer.front.client
    client.set_log_base(log, LOG_SIZE)
    client.set_log_fd(signal)
    client.set_features(peer.front.features | 1 << VhostFeature.LOG_ALL)
    peer.start()
    make_waiting(signal)
    peer.driver.ring.send(b"ab", 2)
    peer.driver.ring.kick()
    peer.lock_is_free()
    peer.within(lambda: peer.front.stop(ECHO))
    os.close(log)
    os.close(signal)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_other_interrupts_that_would_wait(peer: Peer, kind: str) -> None:
    """Full, and without O_NONBLOCK at the peer."""
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        reader, writer = (end.detach() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
    peer.rescue = lambda: os.read(reader, 1 << 16)
    peer.start()
    peer.front.client.set_vring_call(ECHO, writer)
    os.set_blocking(writer, False)
    for size in (1 << 16, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(size))
    os.set_blocking(writer, True)
    for _ in range(3):
        peer.ask()
    peer.lock_is_free()
    peer.stop_ring(3)
    os.close(reader)
    os.close(writer)


def test_a_state_that_would_wait(peer: Peer) -> None:
    """Who reads its pipe sees a byte, and then waits for the next, if the peer has its way."""
    reader, writer = os.pipe()
    peer.rescue = lambda: os.write(writer, b"y")
    client = peer.front.client
    load = DEVICE_STATE.pack(TransferDirection.LOAD, PHASE_STOPPED)
    assert client.ask_u64(Request.SET_DEVICE_STATE_FD, load, [reader]) == 1 << 8
    os.set_blocking(reader, True)
    os.write(writer, b"x")
    peer.wait(lambda: not select.select([reader], [], [], 0)[0])
    answers: list[int] = []
    peer.within(lambda: answers.append(client.ask_u64(Request.CHECK_DEVICE_STATE)))
    assert answers != [0]
    os.close(reader)
    os.close(writer)


# Races: the descriptor is as it should be when it is looked at.


class Racer:
    """Does something without end in a thread of its own."""

    def __init__(self, move: Callable[[], object]) -> None:
        self._move = move
        self._ends = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ends:
            self._move()

    def stop(self) -> None:
        self._ends = True
        self._thread.join()


def test_an_interrupt_that_waits_only_sometimes(peer: Peer) -> None:
    peer.start()
    fd = peer.ring.call_fd

    def fill() -> None:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_RDWR)
        os.eventfd_write(fd, FULL)

    filler, emptier = Racer(fill), Racer(lambda: empty(fd))
    for _ in range(ROUNDS):
        peer.ask()
        peer.lock_is_free()
    filler.stop()
    emptier.stop()
    peer.stop_ring(ROUNDS)


def test_a_kick_that_is_taken_away(peer: Peer) -> None:
    """Who looked sees it, who reads does not."""
    peer.start()
    fd = peer.ring.kick_fd
    peer.rescue = lambda: os.eventfd_write(fd, 1)

    def move() -> None:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_RDWR)
        os.eventfd_write(fd, 1)
        empty(fd)

    racer = Racer(move)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        peer.lock_is_free()
    racer.stop()
    peer.ask()
    peer.stop_ring(1)
