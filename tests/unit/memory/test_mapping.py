"""Mapping: a shared window into a file, unmapped with its last view."""

import os
import weakref
from collections.abc import Iterator

import pytest

from iolane.errors import IolaneError
from iolane.memory.mapping import Mapping, MappingError
from tests.unit.memory.support import PAGE, areas, descriptors, memfd


@pytest.fixture
def fd() -> Iterator[int]:
    with memfd(4) as fd:
        yield fd


def test_shares_the_file(fd: int) -> None:
    mapping = Mapping(fd, 2 * PAGE, PAGE)
    view = memoryview(mapping)
    assert (len(mapping), view.nbytes, view.format, view.readonly) == (2 * PAGE, 2 * PAGE, "B", False)
    assert (view[0], view[PAGE]) == (2, 3)
    view[5:8] = b"abc"
    assert os.pread(fd, 3, PAGE + 5) == b"abc"
    os.pwrite(fd, b"xyz", PAGE + 5)
    assert bytes(view[5:8]) == b"xyz"
    assert not mapping.broken
    assert mapping.address % PAGE == 0


def test_a_length_within_a_page(fd: int) -> None:
    os.ftruncate(fd, PAGE + 10)
    view = memoryview(Mapping(fd, PAGE + 10))
    assert view[-1] == 2
    assert len(view) == PAGE + 10


def test_read_only(fd: int) -> None:
    readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    mapping = Mapping(readable, PAGE, writable=False)
    with pytest.raises(MappingError, match="Permission denied") as refusal:
        Mapping(readable, PAGE)
    os.close(readable)
    assert refusal.value.errno == 13
    view = memoryview(mapping)
    assert view.readonly
    assert view[0] == 1
    with pytest.raises((BufferError, TypeError)):
        os.preadv(fd, [mapping], 0)


def test_lives_as_long_as_a_view(fd: int) -> None:
    before = areas()
    mapping = Mapping(fd, PAGE)
    view, alive = memoryview(mapping)[10:20], weakref.ref(mapping)
    del mapping
    assert view[0] == 1
    assert areas() == before + 1
    del view
    assert alive() is None
    assert areas() == before


def test_close_waits_for_the_views_and_gives_no_more(fd: int) -> None:
    before = areas()
    mapping = Mapping(fd, PAGE)
    one, other = memoryview(mapping), memoryview(mapping)
    mapping.close()
    assert mapping.closed
    with pytest.raises(BufferError, match="closed"):
        memoryview(mapping)
    one.release()
    assert other[0] == 1
    other.release()
    assert areas() == before
    assert (mapping.address, mapping.broken, "closed" in repr(mapping)) == (0, False, True)
    with pytest.raises(ValueError, match="closed"):
        mapping.probe()
    mapping.close()


def test_leaks_nothing(fd: int) -> None:
    before = areas(), descriptors()
    for _ in range(5):
        mappings = [Mapping(fd, 4 * PAGE) for _ in range(600)]  # more than one chunk of the guard's table
        views = [memoryview(mapping) for mapping in mappings]
        assert views[-1][0] == 1
        del mappings, views
    assert (areas(), descriptors()) == before


@pytest.mark.parametrize(
    ("length", "offset"),
    [
        (0, 0),
        (-1, 0),
        (PAGE, -PAGE),
        (1 << 70, 0),
        (PAGE, 1 << 70),
        (PAGE, 1),
        (5 * PAGE, 0),
        (PAGE, 4 * PAGE),
    ],
)
def test_refuses_what_the_file_does_not_hold(fd: int, length: int, offset: int) -> None:
    with pytest.raises(MappingError) as refusal:
        Mapping(fd, length, offset)
    assert isinstance(refusal.value, IolaneError)
    assert "\n" not in str(refusal.value)


def test_refuses_descriptors_that_are_no_memory() -> None:
    reading, writing = os.pipe()
    with pytest.raises(MappingError):
        Mapping(reading, PAGE)
    os.close(reading)
    os.close(writing)
    with pytest.raises(MappingError, match="Bad file descriptor") as refusal:
        Mapping(writing, PAGE)
    assert refusal.value.errno == 9


def test_probe_stays_inside(fd: int) -> None:
    mapping = Mapping(fd, 2 * PAGE)
    assert not mapping.probe(PAGE, PAGE)
    for offset, length in ((-1, 1), (0, 0), (PAGE, PAGE + 1), (2 * PAGE, None)):
        with pytest.raises(ValueError, match="outside"):
            mapping.probe(offset, length)
