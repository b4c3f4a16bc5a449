"""MemoryFiles: one mapping per file, counted, mapped anew when the file grew."""

import os
from collections.abc import Iterator

import pytest

from iolane.memory.files import MemoryFiles
from iolane.memory.mapping import MappingError
from tests.unit.memory.support import PAGE, areas, descriptors, memfd


@pytest.fixture
def fd() -> Iterator[int]:
    with memfd(2) as fd:
        yield fd


@pytest.fixture
def files() -> Iterator[MemoryFiles]:
    files = MemoryFiles()
    yield files
    files.close()


def test_thousands_of_maps_are_one_mapping(fd: int, files: MemoryFiles) -> None:
    before = areas(), descriptors()
    held = []
    for _ in range(2000):
        copy = os.dup(fd)
        held.append(files.acquire(copy, end=PAGE))
        os.close(copy)
    assert len({id(mapping) for mapping in held}) == len(files) == 1
    assert areas() == before[0] + 1
    for mapping in held:
        files.release(mapping)
    assert (len(files), held[0].closed) == (0, True)
    assert (areas(), descriptors()) == before
    with pytest.raises(ValueError, match="released already"):
        files.release(held[0])


def test_other_files_are_other_mappings(fd: int, files: MemoryFiles) -> None:
    with memfd(1) as other:
        assert files.acquire(fd) is not files.acquire(other)


def test_access_is_what_the_descriptor_gives(fd: int, files: MemoryFiles) -> None:
    writable = files.acquire(fd)
    readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with pytest.raises(MappingError, match="forbids"):
            files.acquire(readable, writable=True)  # though a writable mapping of the file exists
        mapping = files.acquire(readable, writable=False)
    finally:
        os.close(readable)
    assert mapping is not writable
    assert memoryview(mapping).readonly


def test_a_file_that_grew_is_mapped_anew(fd: int, files: MemoryFiles) -> None:
    old = files.acquire(fd)
    view = memoryview(old)
    os.ftruncate(fd, 3 * PAGE)
    assert files.acquire(fd, end=2 * PAGE) is old
    new = files.acquire(fd, end=3 * PAGE)
    assert new is not old
    assert new.length == 3 * PAGE
    memoryview(new)[0] = 99
    assert view[0] == 99
    files.release(new)
    assert files.acquire(fd, end=PAGE).length == 3 * PAGE
    files.release(old)
    files.release(old)
    assert view[0] == 99


def test_a_broken_mapping_is_not_given_again(fd: int, files: MemoryFiles) -> None:
    old = files.acquire(fd)
    os.ftruncate(fd, 0)
    assert old.probe()
    os.ftruncate(fd, 2 * PAGE)
    new = files.acquire(fd)
    assert new is not old
    assert not new.broken
    files.release(old)
    assert files.acquire(fd) is new


def test_refuses_what_is_no_memory_or_too_short(fd: int, files: MemoryFiles) -> None:
    before = areas()
    with pytest.raises(MappingError, match="ends at"):
        files.acquire(fd, end=2 * PAGE + 1)
    reading, writing = os.pipe()
    with pytest.raises(MappingError, match="no regular file"):
        files.acquire(reading)
    os.close(reading)
    os.close(writing)
    with pytest.raises(MappingError, match="Bad file descriptor"):
        files.acquire(writing)
    os.ftruncate(fd, 0)
    with pytest.raises(MappingError):
        files.acquire(fd)
    assert (areas(), len(files)) == (before, 0)
