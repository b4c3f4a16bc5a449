"""The log of written pages: buffers, used rings, from the moment on that the front end asks."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

import pytest

from iolane.carriers.vhost_user import FrontEnd, Rejection, SharedMemory, VhostUserError
from iolane.carriers.vhost_user.log import LogSignal, SharedLog
from iolane.carriers.vhost_user.protocol import LOG, Request
from iolane.carriers.vhost_user.rejection import RefusedError
from iolane.memory.atomic import set_bits
from iolane.memory.signals import Signaller
from tests.unit.carriers.vhost_user.sample import ECHO, Driver, RawFront, open_fds

AddDriver = Callable[..., Driver]
LOG_ALL = 1 << 26
LOG_SIZE = (0x1_0000_0000 + (1 << 20)) // 4096 // 8
PAGE = 4096


class Log:
    """A log as a front end has it."""

    def __init__(self, size: int = LOG_SIZE, offset: int = 0) -> None:
        self.fd = os.memfd_create("log")
        self.size, self.offset = size, offset
        os.ftruncate(self.fd, offset + size)

    def pages(self) -> set[int]:
        """The pages that are marked; they are not any more."""
        content = os.pread(self.fd, self.size, self.offset)
        os.pwrite(self.fd, bytes(self.size), self.offset)
        return {
            8 * at + bit for at, byte in enumerate(content) if byte for bit in range(8) if byte >> bit & 1
        }

    def close(self) -> None:
        os.close(self.fd)


@pytest.fixture
def log() -> Log:
    return Log()


def test_migration_on_and_off_under_a_running_ring(
    front: FrontEnd, add_driver: AddDriver, log: Log, memory: SharedMemory
) -> None:
    """As QEMU does it: SET_LOG_BASE, SET_FEATURES with LOG_ALL, SET_VRING_ADDR with the flag."""
    driver = add_driver()
    driver.ask(b"ab")
    front.client.set_log_base(log.fd, log.size)
    assert not log.pages()
    front.client.set_features(front.features | LOG_ALL)
    front.set_address(ECHO, log=driver.ring.used)
    used_page = driver.ring.used // PAGE
    target = driver.ring.memory.allocate(3 * PAGE)
    source = driver.ring.memory.allocate(3 * PAGE)
    log.pages()
    driver.ring.add([(source, 2 * PAGE)], [(target, 2 * PAGE)])
    driver.ring.kick()
    driver.wait_used(2)
    first = target // PAGE
    front.client.get_features()
    front.stop(ECHO)
    pages = log.pages()
    assert pages == {used_page, *range(first, (target + 2 * PAGE - 1) // PAGE + 1)}
    front.client.set_features(front.features)
    front.start(ECHO, driver.ring, 2)
    driver.ring.send(b"ab", 2)
    driver.ring.kick()
    driver.wait_used(3)
    assert not log.pages()
    log.close()


def test_the_used_ring_is_logged_where_the_front_end_says(
    front: FrontEnd, add_driver: AddDriver, log: Log
) -> None:
    """ "log_guest_addr should be used to calculate the log offset"; it need not be in the memory table."""
    driver = add_driver()
    front.client.set_log_base(log.fd, log.size)
    front.set_address(ECHO, log=0x1234_5000)
    log.pages()
    driver.ask(b"ab")
    front.stop(ECHO)
    assert log.pages() == {0x12345}
    log.close()


def test_without_log_all_buffers_are_not_logged(front: FrontEnd, add_driver: AddDriver, log: Log) -> None:
    front.client.set_log_base(log.fd, log.size)
    add_driver().ask(b"ab")
    assert not log.pages()
    log.close()


def test_a_log_at_an_offset_and_another_log(front: FrontEnd, add_driver: AddDriver) -> None:
    one, other = Log(offset=0x1008), Log(offset=64)
    driver = add_driver()
    front.client.set_features(front.features | LOG_ALL)
    front.client.set_log_base(one.fd, one.size, one.offset)
    driver.ask(b"ab")
    front.client.set_log_base(other.fd, other.size, other.offset)
    assert one.pages()
    other.pages()
    driver.ask(b"ab")
    front.stop(ECHO)
    assert not one.pages()
    assert other.pages()
    one.close()
    other.close()


def test_the_front_end_is_told_of_marks_if_it_wants(front: FrontEnd, add_driver: AddDriver, log: Log) -> None:
    signal = os.eventfd(0, os.EFD_NONBLOCK)
    front.client.set_log_base(log.fd, log.size)
    front.client.set_log_fd(signal)
    front.client.set_features(front.features | LOG_ALL)
    add_driver().ask(b"ab")
    assert os.eventfd_read(signal)
    log.close()
    os.close(signal)


def test_a_log_that_is_too_short_for_the_memory(
    front: FrontEnd, add_driver: AddDriver, rejected: Callable[[Rejection], int]
) -> None:
    """What lies past its end is counted, and nothing past its end is written."""
    log = Log(size=100)
    driver = add_driver()
    front.client.set_log_base(log.fd, log.size)
    front.client.set_features(front.features | LOG_ALL)
    driver.ask(b"ab")
    with pytest.raises(VhostUserError):
        front.set_address(ECHO, log=driver.ring.used)
    assert rejected(Rejection.LOG_ADDRESS) == 1
    assert not log.pages()
    assert driver.ask(b"ab") == b"ba"
    log.close()


@pytest.mark.parametrize("layout", [(0, 0), (1 << 63, 0), (4096, 1 << 63), (8192, 0), (4096, 4096)])
def test_logs_that_can_t_be(
    front: FrontEnd, layout: tuple[int, int], rejected: Callable[[Rejection], int]
) -> None:
    """SET_LOG_BASE has an answer of its own, so that refusing it ends the connection."""
    log = Log(size=4096)
    before = open_fds()
    with pytest.raises(VhostUserError):
        front.client.ask(Request.SET_LOG_BASE, LOG.pack(*layout), [log.fd])
    assert rejected(Rejection.LOG_SIZE) == 1
    front.disconnect()
    assert open_fds() <= before
    log.close()


def test_a_log_without_a_descriptor(raw: RawFront) -> None:
    raw.send(Request.SET_LOG_BASE, LOG.pack(4096, 0))
    assert raw.ended()


def test_bits_of_others_are_not_lost() -> None:
    """Two threads set the even and the odd bits of the same bytes."""
    log = Log(size=1 << 12)
    shared = SharedLog(log.fd, log.size, 0, LogSignal(Signaller()))

    def mark(first: int) -> None:
        for page in range(first, 8 * log.size, 2):
            shared.mark(page * PAGE, 1)

    threads = [threading.Thread(target=mark, args=(first,)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.pages() == set(range(8 * log.size))
    shared.close()
    log.close()


@pytest.mark.parametrize(
    ("first", "count", "expected"),
    [(0, 1, "01000000"), (3, 10, "f81f0000"), (7, 1, "80000000"), (8, 16, "00ffff00"), (30, 99, "000000c0")],
)
def test_set_bits(first: int, count: int, expected: str) -> None:
    bits = bytearray(4)
    assert set_bits(bits, first, count) == min(count, 32 - first)
    assert bits.hex() == expected


def test_bits_outside_are_left_out() -> None:
    bits = bytearray(4)
    assert set_bits(bits, 32, 5) == 0
    assert set_bits(bits, 0, 0) == 0
    with pytest.raises(ValueError):
        set_bits(bits, -1, 1)
    with pytest.raises(BufferError):
        set_bits(memoryview(bytes(4)), 0, 1)


def test_marks_of_a_log(log: Log) -> None:
    shared = SharedLog(log.fd, log.size, 0, LogSignal(Signaller()))
    shared.mark(0x1FFF, 2)
    shared.mark(0x5000, 0)
    shared.mark(0x7000, 0x1000)
    assert log.pages() == {1, 2, 7}
    shared.mark(shared.pages * PAGE - 1, 2)
    assert shared.lost == 1
    shared.close()
    log.close()


def test_a_log_in_no_file() -> None:
    with pytest.raises(RefusedError), open(os.devnull) as null:
        SharedLog(null.fileno(), 4096, 0, LogSignal(Signaller()))
    assert Rejection.LOG_SIZE.error == errno.EINVAL
