"""Pins and unmap across threads: nothing is unmapped under work, and nobody waits for ever."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from iolane.model.dma import DmaFault, DmaSpace

PAGE = 4096


class Watched(threading.Condition):
    """The device's lock, which tells when somebody waits on it."""

    def __init__(self) -> None:
        super().__init__(threading.RLock())
        self.waits = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.set()
        return super().wait(timeout)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_unmap_waits_for_the_pin_with_the_lock_released(depth: int) -> None:
    lock = Watched()
    space = DmaSpace(lock)
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 2 * PAGE)
    space.map(0, PAGE, fd=fd)
    space.map(PAGE, PAGE, fd=fd, offset=PAGE)
    pinned = space.pin([(8, 8)], write=True)

    def unmap() -> int:
        for _ in range(depth):
            lock.acquire()
        try:
            return space.unmap(0, 2 * PAGE)
        finally:
            for _ in range(depth):
                lock.release()

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(unmap)
        assert lock.waits.wait(10)
        with lock:  # released by the waiter, however deep it holds it
            assert not result.done()
            assert space.maps == []
            with pytest.raises(DmaFault):
                space.read(0, 1)
            space.map(0, PAGE, buffer=bytearray(b"n" * PAGE))  # the next map of the same place
        pinned.views[0][:] = b"finished"
        pinned.release()
        assert result.result(10) == 2 * PAGE
    assert os.pread(fd, 8, 8) == b"finished"
    assert space.read(8, 1) == b"n"
    os.close(fd)


def test_unmap_elsewhere_does_not_wait() -> None:
    space = DmaSpace()
    space.map(0, PAGE, buffer=bytearray(PAGE))
    space.map(PAGE, PAGE, buffer=bytearray(PAGE))
    pinned = space.pin([(0, PAGE)], write=False)
    assert space.unmap(PAGE, PAGE) == PAGE
    pinned.release()


def test_each_pin_counts() -> None:
    lock = Watched()
    space = DmaSpace(lock)
    space.map(0, PAGE, buffer=bytearray(PAGE))
    pins = [space.pin([(0, 8), (8, 8)], write=False) for _ in range(3)]
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(space.unmap_all)
        assert lock.waits.wait(10)
        for pinned in pins:
            assert not result.done()
            pinned.release()
            pinned.release()
        assert result.result(10) == PAGE


def test_views_are_gone_after_release() -> None:
    space = DmaSpace()
    space.map(0, PAGE, buffer=bytearray(PAGE))
    with space.pin([(0, 8)], write=True) as pinned:
        view = pinned.views[0]
        assert not pinned.released
    assert pinned.released
    with pytest.raises(ValueError):
        view[0]


def test_an_exception_in_the_block_releases() -> None:
    space = DmaSpace()
    space.map(0, PAGE, buffer=bytearray(PAGE))
    with pytest.raises(KeyError):
        with space.pin([(0, 8)], write=True):
            raise KeyError
    assert space.unmap_all() == PAGE


def test_a_refused_pin_holds_nothing() -> None:
    space = DmaSpace()
    space.map(0, PAGE, buffer=bytearray(PAGE))
    with pytest.raises(DmaFault):
        space.pin([(0, 8), (PAGE, 8)], write=True)
    assert space.unmap_all() == PAGE


def test_pieces_that_are_neighbours_are_one_view() -> None:
    """A PRP list of a file in order is one vector of I/O."""
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 8 * PAGE)
    space = DmaSpace()
    space.map(0, 8 * PAGE, fd=fd)
    pinned = space.pin([(PAGE * page, PAGE) for page in (0, 1, 2, 5, 4)], write=False)
    assert [len(view) for view in pinned.views] == [3 * PAGE, PAGE, PAGE]
    pinned.release()
    os.close(fd)
