"""16-bit indexes that another process changes are read and written at once, never half."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from iolane.memory.bitmap import DirtyBitmap
from iolane.model.dma import DmaFault, DmaSpace, Permission

BEFORE, AFTER = 0x00FF, 0x0100
"""Read in halves, 0x01FF or 0x0000."""
SECONDS = 1.5


@contextmanager
def other_process(work: object) -> Iterator[None]:
    """Call `work` in another process, again and again."""
    assert callable(work)
    pid = os.fork()
    if not pid:
        while True:
            work()
    try:
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_an_index_that_another_process_changes_is_read_whole() -> None:
    memory = mmap.mmap(-1, 4096)
    dma = DmaSpace()
    dma.map(0, 4096, buffer=memoryview(memory))
    index = memoryview(memory).cast("H")
    index[1] = BEFORE

    def change() -> None:
        for _ in range(1000):
            index[1] = AFTER
            index[1] = BEFORE

    seen = set()
    with other_process(change):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            seen |= {dma.load16(2) for _ in range(5000)}
    assert seen <= {BEFORE, AFTER}


def test_an_index_is_written_whole() -> None:
    memory = mmap.mmap(-1, 4096)
    dma = DmaSpace()
    dma.map(0, 4096, buffer=memoryview(memory))
    dma.store16(2, BEFORE)
    index = memoryview(memory).cast("H")

    def change() -> None:
        for _ in range(1000):
            dma.store16(2, AFTER)
            dma.store16(2, BEFORE)

    seen = set()
    with other_process(change):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            seen |= {index[1] for _ in range(5000)}
    assert seen <= {BEFORE, AFTER}


def test_what_read_and_write_check_holds_for_them() -> None:
    dma = DmaSpace()
    dma.map(0, 4096, buffer=bytearray(4096), permission=Permission.READ)
    dma.map(8192, 4096, buffer=bytearray(4096))
    dma.store16(8192, 0x1234)
    assert dma.load16(8192) == 0x1234
    assert dma.load16(8193) == 0x12
    for address in (4095, 4096, 12287, -1):
        with pytest.raises(DmaFault):
            dma.load16(address)
    for address in (0, 4096, 12287):
        with pytest.raises(DmaFault):
            dma.store16(address, 1)
    dma.enabled = False
    with pytest.raises(DmaFault):
        dma.load16(8192)
    with pytest.raises(DmaFault):
        dma.store16(8192, 1)


def test_across_neighbouring_maps() -> None:
    dma = DmaSpace()
    dma.map(0, 4096, buffer=bytearray(4096))
    dma.map(4096, 4096, buffer=bytearray(4096))
    dma.store16(4095, 0xABCD)
    assert dma.load16(4095) == 0xABCD


def test_stores_are_logged() -> None:
    class Log:
        def __init__(self) -> None:
            self.bits = DirtyBitmap(0, 8192)

        def mark(self, iova: int, length: int) -> None:
            self.bits.mark(iova, length)

    dma, log = DmaSpace(), Log()
    dma.map(0, 8192, buffer=bytearray(8192))
    dma.share_dirty_log(log)
    dma.store16(4096, 1)
    assert log.bits.collect(0, 8192) == b"\2"
    assert (dma.bytes_read, dma.bytes_written) == (0, 2)
