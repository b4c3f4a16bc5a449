"""DirtyBitmap against a set of page numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iolane.memory.bitmap import DirtyBitmap

START, PAGES = 0x10_0000, 61
Write = tuple[int, int]


@given(st.lists(st.tuples(st.integers(START - 9000, START + (PAGES + 3) * 4096), st.integers(0, 40_000))),
       st.integers(0, PAGES - 1), st.integers(1, PAGES))  # fmt: skip
def test_is_a_set_of_pages(writes: list[Write], first: int, count: int) -> None:
    bitmap = DirtyBitmap(START, PAGES * 4096)
    count = min(count, PAGES - first)
    expected = {
        (address + at) // 4096 - START // 4096
        for address, length in writes
        for at in {*range(0, length, 4096), length - 1}
        if length
    }
    expected &= set(range(PAGES))
    for address, length in writes:
        bitmap.mark(address, length)
    assert bitmap.count() == len(expected)

    bits = bitmap.collect(START + first * 4096, count * 4096)
    assert len(bits) == (count + 7) // 8
    got = {first + n for n in range(len(bits) * 8) if bits[n >> 3] >> (n & 7) & 1}
    assert got == {page for page in expected if first <= page < first + count}
    assert bitmap.count() == len(expected - got)
    assert not any(bitmap.collect(START + first * 4096, count * 4096))


def test_least_significant_bit_first() -> None:
    bitmap = DirtyBitmap(0, 16 * 4096)
    bitmap.mark(4096, 1)
    bitmap.mark(9 * 4096 - 1, 2)
    assert bitmap.collect(0, 16 * 4096) == bytes([0b10, 0b11])


def test_other_page_sizes_and_ends_within_a_page() -> None:
    bitmap = DirtyBitmap(0x1800, 0x1000, page_size=0x1000)  # touches pages 1 and 2
    bitmap.mark(0x27FF, 1)
    assert bitmap.collect(0x1800, 0x1000) == b"\x02"
    large = DirtyBitmap(0, 4 << 21, page_size=2 << 20)
    large.mark((2 << 20) - 1, 2)
    assert large.collect(0, 4 << 21) == b"\x03"


@pytest.mark.parametrize(("start", "length"), [(START - 1, 4096), (START, 0), (START + 4096, PAGES * 4096)])
def test_what_is_not_tracked_is_not_called_clean(start: int, length: int) -> None:
    with pytest.raises(ValueError):
        DirtyBitmap(START, PAGES * 4096).collect(start, length)


@pytest.mark.parametrize(("start", "length", "page"), [(0, 0, 4096), (-1, 1, 4096), (0, 1, 0), (0, 1, 4095)])
def test_refuses_nonsense(start: int, length: int, page: int) -> None:
    with pytest.raises(ValueError):
        DirtyBitmap(start, length, page)
