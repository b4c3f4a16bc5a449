"""PRP entries and lists: NVM Express Base 2.0c, 4.1.1."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iolane.devices.nvme.prp import resolve_prps
from iolane.devices.nvme.spec import CommandError, Status
from iolane.model.dma import DmaSpace

BASE, SIZE = 0x10000, 64 * 4096


def space() -> tuple[DmaSpace, bytearray]:
    memory = bytearray(SIZE)
    dma = DmaSpace()
    dma.map(BASE, SIZE, buffer=memory)
    return dma, memory


def put_list(memory: bytearray, iova: int, entries: list[int]) -> None:
    struct.pack_into(f"<{len(entries)}Q", memory, iova - BASE, *entries)


def status_of(dma: DmaSpace, prp1: int, prp2: int, length: int) -> Status:
    with pytest.raises(CommandError) as caught:
        resolve_prps(dma, prp1, prp2, length, 4096)
    return caught.value.status


def test_one_and_two_pages() -> None:
    dma, _ = space()
    assert resolve_prps(dma, 0x20004, 0xDEAD, 4092, 4096) == [(0x20004, 4092)]
    assert resolve_prps(dma, 0x20004, 0x30000, 4096, 4096) == [(0x20004, 4092), (0x30000, 4)]
    assert resolve_prps(dma, 0x20000, 0x21000, 8192, 4096) == [(0x20000, 8192)]
    assert resolve_prps(dma, 0x20000, 0, 0, 4096) == []


def test_offsets_that_the_specification_forbids() -> None:
    dma, memory = space()
    assert status_of(dma, 0x20001, 0, 16) == Status.INVALID_PRP_OFFSET
    assert status_of(dma, 0x20000, 0x21008, 8192) == Status.INVALID_PRP_OFFSET
    assert status_of(dma, 0x20000, BASE + 4, 3 * 4096) == Status.INVALID_PRP_OFFSET
    put_list(memory, BASE, [0x40000, 0x41010])
    assert status_of(dma, 0x20000, BASE, 3 * 4096) == Status.INVALID_PRP_OFFSET
    put_list(memory, BASE + 4088, [0x40008])
    assert status_of(dma, 0x20000, BASE + 4088, 4 * 4096) == Status.INVALID_PRP_OFFSET


def test_a_list_may_start_inside_its_page_and_is_chained_by_its_last_entry() -> None:
    dma, memory = space()
    put_list(memory, BASE + 4080, [0x40000, BASE + 8192])
    put_list(memory, BASE + 8192, [0x50000, 0x51000, 0x53000])
    pieces = resolve_prps(dma, 0x20800, BASE + 4080, 2048 + 3 * 4096 + 100, 4096)
    assert pieces == [(0x20800, 2048), (0x40000, 4096), (0x50000, 8192), (0x53000, 100)]
    put_list(memory, BASE + 4088, [BASE + 8192])
    assert resolve_prps(dma, 0x20000, BASE + 4088, 3 * 4096, 4096)[1:] == [(0x50000, 8192)]


def test_a_last_entry_that_is_needed_for_data_is_no_pointer() -> None:
    dma, memory = space()
    put_list(memory, BASE + 4080, [0x40000, 0x60000])
    assert resolve_prps(dma, 0x20000, BASE + 4080, 3 * 4096, 4096)[1:] == [(0x40000, 4096), (0x60000, 4096)]


def test_a_list_outside_memory_is_a_data_transfer_error() -> None:
    dma, memory = space()
    assert status_of(dma, 0x20000, 0x9000000, 4 * 4096) == Status.DATA_TRANSFER_ERROR
    put_list(memory, BASE + 4088, [0x9000000])
    assert status_of(dma, 0x20000, BASE + 4088, 4 * 4096) == Status.DATA_TRANSFER_ERROR


def test_a_list_that_points_to_itself_ends_with_the_data() -> None:
    dma, memory = space()
    put_list(memory, BASE, [BASE] * 512)
    pieces = resolve_prps(dma, 0x20000, BASE, 1 << 20, 4096)
    assert sum(length for _, length in pieces) == 1 << 20


def resolved(dma: DmaSpace, prp1: int, prp2: int, length: int, page: int) -> list[tuple[int, int]] | Status:
    try:
        return resolve_prps(dma, prp1, prp2, length, page)
    except CommandError as error:
        return error.status


@given(
    st.integers(0, 1 << 32),
    st.integers(0, SIZE + 8192),
    st.integers(0, SIZE + 8192),
    st.integers(0, 1 << 20),
    st.sampled_from([4096, 8192, 65536]),
)
def test_whatever_the_lists_hold_the_answer_is_all_the_data_or_a_status(
    seed: int, prp1: int, prp2: int, length: int, page: int
) -> None:
    dma, memory = space()
    memory[:] = random.Random(seed).randbytes(SIZE)
    for at in range(0, SIZE, 16):  # make half of the entries plausible
        struct.pack_into("<Q", memory, at, BASE + (memory[at] << 12))
    found = resolved(dma, BASE + prp1, BASE + prp2, length, page)
    if isinstance(found, Status):
        assert found in (Status.INVALID_PRP_OFFSET, Status.DATA_TRANSFER_ERROR)
    else:
        assert sum(size for _, size in found) == length
        assert all(size > 0 for _, size in found)
