"""The dirty log: pages, ranges, bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iolane.errors import IolaneError
from iolane.model.dma import DmaSpace
from iolane.model.dma.dirty import CHUNK_PAGES, DirtyLog

PAGE = 4096
CHUNK = PAGE * CHUNK_PAGES
TOP = 1 << 64


def pages_of(bits: bytes) -> set[int]:
    value = int.from_bytes(bits, "little")
    return {bit for bit in range(len(bits) * 8) if value >> bit & 1}


@given(
    st.lists(
        st.tuples(st.integers(CHUNK - 9 * PAGE, CHUNK + 9 * PAGE), st.integers(0, 5 * PAGE)), max_size=6
    ),
    st.integers(CHUNK // PAGE - 12, CHUNK // PAGE + 12),
    st.integers(1, 24),
)
def test_marks_come_back_once(marks: list[tuple[int, int]], start: int, count: int) -> None:
    log = DirtyLog((), PAGE)
    dirty = set()
    for iova, length in marks:
        log.mark(iova, length)
        dirty |= {address // PAGE for address in range(iova, iova + length)}
    wanted = {page - start for page in dirty if start <= page < start + count}
    report = log.collect(start * PAGE, count * PAGE)
    assert len(report) == (count + 7) // 8
    assert pages_of(report) == wanted
    assert pages_of(log.collect(start * PAGE, count * PAGE)) == set()
    rest = log.collect((start - 40) * PAGE, 128 * PAGE)
    assert {page + start - 40 for page in pages_of(rest)} == {
        page for page in dirty if not start <= page < start + count
    }


def test_only_ranges_are_logged() -> None:
    log = DirtyLog([(0, 2 * PAGE), (8 * PAGE, PAGE)], PAGE)
    log.mark(0, 16 * PAGE)
    assert pages_of(log.collect(0, 16 * PAGE)) == {0, 1, 8}


def test_larger_pages_and_the_end_of_the_address_space() -> None:
    log = DirtyLog((), 1 << 21)
    log.mark(TOP - 1, 1)
    log.mark((1 << 21) - 1, 2)
    assert pages_of(log.collect(TOP - (8 << 21), 8 << 21)) == {7}
    assert pages_of(log.collect(0, 4 << 21)) == {0, 1}


def test_a_guest_that_dirties_everything_costs_a_bounded_amount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iolane.model.dma.dirty.CHUNK_LIMIT", 4)
    log = DirtyLog((), PAGE)
    for number in range(6):
        log.mark(number * CHUNK * 5, 1)
    assert log.overflowed
    assert pages_of(log.collect(PAGE, 11 * PAGE)) == set(range(11))


def test_sparse_report_of_a_large_range() -> None:
    log = DirtyLog((), PAGE)
    log.mark(3 * CHUNK, 1)
    log.mark(1 << 60, 1)
    report = log.collect(0, 1 << 36)
    assert pages_of(report[: CHUNK_PAGES // 2]) == {3 * CHUNK_PAGES}
    assert not any(report[CHUNK_PAGES // 2 :])


@pytest.mark.parametrize("page_size", [0, 1, 256, 4095, 6000, 1 << 31, -4096])
def test_bad_page_size(page_size: int) -> None:
    with pytest.raises(IolaneError):
        DirtyLog((), page_size)


@pytest.mark.parametrize("bad", [(0, 0), (-PAGE, PAGE), (TOP - PAGE, 2 * PAGE), (0, TOP + 1)])
def test_bad_ranges(bad: tuple[int, int]) -> None:
    with pytest.raises(IolaneError):
        DirtyLog([bad], PAGE)
    log = DirtyLog((), PAGE)
    with pytest.raises(IolaneError):
        log.collect(*bad)
    with pytest.raises(IolaneError):
        log.collect(1, PAGE)


def test_of_a_space() -> None:
    space = DmaSpace()
    with pytest.raises(IolaneError):
        space.collect_dirty(0, PAGE)
    space.map(0, 16 * PAGE, buffer=bytearray(16 * PAGE))
    space.write(0, b"before")
    space.start_dirty_log()
    space.read(PAGE, 8)
    space.write(2 * PAGE, b"x")
    space.view(4 * PAGE, 8, write=True)[:] = b"12345678"
    pinned = space.pin([(6 * PAGE, 2 * PAGE)], write=True)
    assert pages_of(space.collect_dirty(0, 16 * PAGE)) == {2, 4}
    pinned.release()
    assert pages_of(space.collect_dirty(0, 16 * PAGE)) == {6, 7}
    space.stop_dirty_log()
    with pytest.raises(IolaneError):
        space.collect_dirty(0, PAGE)
