import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iolane.backends.memory import MemoryBackend
from iolane.testing.power_cut import FlushForgotten, PowerCut

SIZE = 32 * 1024


def read(backend: PowerCut | MemoryBackend, offset: int = 0, length: int = SIZE) -> bytes:
    buffer = bytearray(length)
    with memoryview(buffer) as view:
        backend.readv(offset, [view[: length // 2], view[length // 2 :]])
    return bytes(buffer)


changes = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=6000)),
        st.tuples(st.just("zero"), st.integers(0, SIZE - 1), st.integers(1, 20000)),
        st.tuples(st.just("flush"), st.just(0), st.just(0)),
    ),
    max_size=12,
)


@given(changes)
def test_reads_see_every_write_and_a_cut_keeps_what_was_flushed(steps: list[tuple[str, int, object]]) -> None:
    backend = PowerCut(MemoryBackend(b"\xaa" * SIZE))
    model = bytearray(b"\xaa" * SIZE)
    flushed = bytes(model)
    for kind, offset, what in steps:
        if kind == "flush":
            backend.flush()
            flushed = bytes(model)
        elif isinstance(what, bytes):
            data = what[: SIZE - offset]
            backend.writev(offset, [memoryview(data[:7]), memoryview(data[7:])])
            model[offset : offset + len(data)] = data
        elif isinstance(what, int):
            length = min(what, SIZE - offset)
            backend.write_zeroes(offset, length)
            model[offset : offset + length] = bytes(length)
        assert read(backend) == model
    backend.cut()
    with pytest.raises(OSError) as caught:
        read(backend)
    assert caught.value.errno == errno.EIO
    backend.restore()
    assert read(backend) == flushed


def test_a_torn_cut_keeps_a_part_of_whole_sectors() -> None:
    outcomes = set()
    for seed in range(8):
        backend = PowerCut(MemoryBackend(SIZE))
        backend.writev(0, [memoryview(b"a" * 4096)])
        backend.flush()
        backend.writev(0, [memoryview(b"b" * 4096)])
        backend.writev(0, [memoryview(b"c" * 4096)])
        backend.cut(seed)
        backend.restore()
        content = read(backend, 0, 4096)
        assert all(
            content[at : at + 512] in (b"a" * 512, b"b" * 512, b"c" * 512) for at in range(0, 4096, 512)
        )
        outcomes.add(content)
    assert len(outcomes) > 4


def test_the_mutant_loses_what_it_claims_to_have_flushed() -> None:
    backend = FlushForgotten(MemoryBackend(SIZE))
    backend.writev(0, [memoryview(b"gone")])
    backend.flush()
    backend.cut()
    backend.restore()
    assert read(backend, 0, 4) == bytes(4)
