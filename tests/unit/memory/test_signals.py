"""Signals that never wait, whatever a peer does with descriptors that are its own, too."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from iolane.memory.signals import Signaller, take
from tests.unit.carriers.vhost_user.sample import open_fds

FULL = (1 << 64) - 2


@pytest.fixture
def signaller() -> Iterator[Signaller]:
    signaller = Signaller()
    yield signaller
    signaller.close()


def test_an_eventfd_counts(signaller: Signaller) -> None:
    fd = os.eventfd(0)
    for _ in range(1000):
        signaller.signal(fd)
    assert os.eventfd_read(fd) == 1000
    os.close(fd)


def test_a_full_eventfd_has_been_signalled(signaller: Signaller) -> None:
    fd = os.eventfd(0)
    os.eventfd_write(fd, FULL)
    for _ in range(3):
        signaller.signal(fd)
    assert os.eventfd_read(fd) > FULL
    os.close(fd)


def test_a_pipe_gets_eight_bytes(signaller: Signaller) -> None:
    """An "8-byte value", as from an eventfd."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    signaller.signal(writer)
    assert os.read(reader, 100) == (1).to_bytes(8, "little")
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(1 << 16))
    signaller.signal(writer)
    os.close(reader)
    signaller.signal(writer)
    os.close(writer)


def test_a_socket_gets_eight_bytes(signaller: Signaller) -> None:
    near, far = socket.socketpair()
    signaller.signal(near.fileno())
    assert far.recv(100) == (1).to_bytes(8, "little")
    near.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            near.send(bytes(1 << 16))
    near.setblocking(True)
    signaller.signal(near.fileno())
    far.close()
    signaller.signal(near.fileno())
    near.close()


def test_what_is_not_there_is_signalled_in_vain(signaller: Signaller) -> None:
    signaller.signal(-1)


def test_it_holds_nothing_before_and_after(signaller: Signaller) -> None:
    fd = os.eventfd(0)
    before = open_fds()
    for _ in range(3):
        signaller.open()
        held = open_fds()
        assert held > before
        signaller.signal(fd)
        assert open_fds() == held
        signaller.close()
        signaller.close()
        assert open_fds() == before
    assert os.eventfd_read(fd) == 3
    os.close(fd)


def test_several_threads_use_it(signaller: Signaller) -> None:
    fd = os.eventfd(0)

    def run() -> None:
        for _ in range(2000):
            signaller.signal(fd)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.eventfd_read(fd) == 8000
    os.close(fd)


WITHOUT_AIO = """
import os, resource
from iolane.memory.signals import Signaller
fd, signaller = os.eventfd(0), Signaller()
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size, size))
before = len(os.listdir("/proc/self/fd"))
signaller.signal(fd)
print(os.eventfd_read(fd), len(os.listdir("/proc/self/fd")) - before)
os.eventfd_write(fd, (1 << 64) - 2)
signaller.signal(fd)
print("full")
"""


def test_where_the_host_has_no_asynchronous_io() -> None:
    """Its rings can't be mapped here: there is no room."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_AIO], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("1 0\nfull\n", "")


# Taking.


def test_signals_are_taken_without_waiting() -> None:
    fd = os.eventfd(3)
    assert take(fd)
    with pytest.raises(BlockingIOError):
        take(fd)
    os.close(fd)
    with pytest.raises(OSError, match="descriptor"):
        take(fd)


def test_a_pipe_s_and_a_socket_s_are_all_taken_at_once() -> None:
    reader, writer = os.pipe()
    near, far = (end.detach() for end in socket.socketpair())
    for taker, giver in ((reader, writer), (near, far)):
        for _ in range(5):
            os.write(giver, bytes(8))
        assert take(taker)
        with pytest.raises(BlockingIOError):
            take(taker)
        os.close(giver)
        assert not take(taker), "nobody signals any more"
        os.close(taker)
