"""Scatter Gather Lists: NVM Express Base 2.0c, 4.1.2; the status of each error: 3.3.3.2.1."""

import os
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iolane.devices.nvme.sgl import MAX_DESCRIPTORS, resolve_sgl
from iolane.devices.nvme.spec import AdminOpcode, Cns, CommandError, IoOpcode, Status
from iolane.model.dma import DmaSpace
from iolane.testing.nvme_driver import NvmeDriver

BASE, SIZE = 0x10000, 64 * 4096
BLOCK, BIT_BUCKET, SEGMENT, LAST, KEYED, TRANSPORT = 0x00, 0x10, 0x20, 0x30, 0x40, 0x50
SGL, SGL_AND_METADATA, RESERVED = 0x40, 0x80, 0xC0
"""PSDT in byte 1 of a command (Base, Figure 87)."""


def descriptor(address: int, length: int, identifier: int = BLOCK) -> bytes:
    return struct.pack("<QI3xB", address, length, identifier)


def pointers(address: int, length: int, identifier: int = BLOCK) -> dict[str, int]:
    """SGL1 in a command, by the names of the PRPs that are there else."""
    return {"flags": SGL, "prp1": address, "prp2": length | identifier << 56}


class Lists:
    """Guest memory with segments in it."""

    def __init__(self) -> None:
        self.memory = bytearray(SIZE)
        self.dma = DmaSpace()
        self.dma.map(BASE, SIZE, buffer=self.memory)

    def put(self, iova: int, *descriptors: bytes) -> None:
        data = b"".join(descriptors)
        self.memory[iova - BASE : iova - BASE + len(data)] = data

    def resolve(self, length: int, address: int, size: int, identifier: int = BLOCK) -> list[tuple[int, int]]:
        return resolve_sgl(self.dma, address, size | identifier << 56, length)

    def status(self, length: int, address: int, size: int, identifier: int = BLOCK) -> Status:
        with pytest.raises(CommandError) as caught:
            self.resolve(length, address, size, identifier)
        assert caught.value.location == 24
        return caught.value.status


@pytest.fixture
def lists() -> Lists:
    return Lists()


def test_a_data_block_in_the_command(lists: Lists) -> None:
    """Of any alignment and length (SGLS bits 1:0 are 01b). It may be longer than the transfer (bit 18)."""
    assert lists.resolve(8192, 0x20000, 8192) == [(0x20000, 8192)]
    assert lists.resolve(513, 0x20003, 513) == [(0x20003, 513)]
    assert lists.resolve(512, 0x20000, 8192) == [(0x20000, 512)]
    assert lists.resolve(0, 0xDEAD, 0, 0xFF) == []


def test_segments_and_the_last_of_them(lists: Lists) -> None:
    """Neighbours are one piece; a Data Block of no bytes is valid (Base 4.1.2)."""
    lists.put(BASE, descriptor(0x20000, 512), descriptor(0, 0), descriptor(0x20200, 100))
    assert lists.resolve(612, BASE, 48, LAST) == [(0x20000, 612)]
    lists.put(BASE + 32, descriptor(0x30001, 1000), descriptor(BASE + 256, 32, SEGMENT))
    lists.put(BASE + 256, descriptor(0x40000, 88), descriptor(BASE + 512, 16, LAST))
    lists.put(BASE + 512, descriptor(0x50000, 400))
    assert lists.resolve(2000, BASE, 64, SEGMENT) == [
        (0x20000, 512),
        (0x30001, 1000),
        (0x40000, 88),
        (0x50000, 400),
    ]


def test_what_is_behind_the_data_is_not_looked_at(lists: Lists) -> None:
    """Only descriptors that are used need to be valid; a link is followed if data is missing."""
    lists.put(BASE, descriptor(0x20000, 512), descriptor(0, 0xFFFFFFFF, 0xFF), descriptor(3, 5, SEGMENT))
    assert lists.resolve(512, BASE, 48, LAST) == [(0x20000, 512)]


def test_a_list_that_is_too_short(lists: Lists) -> None:
    lists.put(BASE, descriptor(0x20000, 512), descriptor(0x30000, 511))
    for identifier in (SEGMENT, LAST):
        assert lists.status(1024, BASE, 32, identifier) == Status.DATA_SGL_LENGTH_INVALID
    assert lists.status(1024, 0x20000, 1023) == Status.DATA_SGL_LENGTH_INVALID


def test_addresses_beyond_64_bits(lists: Lists) -> None:
    """Address and length together: at most 2^64 (Base 4.1.2)."""
    end = 1 << 64
    assert lists.resolve(512, end - 512, 512) == [(end - 512, 512)]
    assert lists.status(512, end - 512, 513) == Status.DATA_SGL_LENGTH_INVALID
    assert lists.status(512, end - 16, 32, LAST) == Status.DATA_SGL_LENGTH_INVALID


@pytest.mark.parametrize("identifier", [SEGMENT, LAST])
@pytest.mark.parametrize(("address", "size"), [(BASE, 0), (BASE, 8), (BASE, 17), (BASE + 4, 16)])
def test_segments_are_whole_descriptors_at_a_qword(
    lists: Lists, identifier: int, address: int, size: int
) -> None:
    assert lists.status(512, address, size, identifier) == Status.INVALID_SGL_SEGMENT


def test_the_last_segment_leads_nowhere(lists: Lists) -> None:
    for identifier in (SEGMENT, LAST):
        lists.put(BASE, descriptor(0x20000, 100), descriptor(BASE + 256, 16, identifier))
        assert lists.status(512, BASE, 32, LAST) == Status.INVALID_SGL_SEGMENT


def test_only_the_last_descriptor_leads_to_a_segment(lists: Lists) -> None:
    for identifier in (SEGMENT, LAST):
        lists.put(BASE, descriptor(BASE + 256, 16, identifier), descriptor(0x20000, 512))
        for first in (SEGMENT, LAST):
            assert lists.status(512, BASE, 32, first) == Status.INVALID_SGL_COUNT


@pytest.mark.parametrize(
    "identifier", [BIT_BUCKET, KEYED, TRANSPORT, 0x60, 0xF0, BLOCK | 1, SEGMENT | 1, LAST | 0xA, 0x0F]
)
def test_descriptors_that_are_not_advertised(lists: Lists, identifier: int) -> None:
    """SGLS bits 2, 16, 20 and 21 are 0. Sub type 1h, offset, is reserved over PCIe (Base 4.1.2)."""
    assert lists.status(512, 0x20000, 512, identifier) == Status.SGL_TYPE_INVALID
    lists.put(BASE, descriptor(0x20000, 16), descriptor(0x30000, 496, identifier))
    assert lists.status(512, BASE, 32, LAST) == Status.SGL_TYPE_INVALID


def test_segments_outside_memory(lists: Lists) -> None:
    assert lists.status(512, BASE + SIZE, 16, LAST) == Status.DATA_TRANSFER_ERROR
    assert lists.status(512, BASE + SIZE - 16, 32, LAST) == Status.DATA_TRANSFER_ERROR


def test_a_list_has_a_limit(lists: Lists) -> None:
    """Also one that leads to itself, or holds Data Blocks of no bytes: the whole of it is counted."""
    blocks = [descriptor(0x20000 + 8 * number, 1) for number in range(MAX_DESCRIPTORS)]
    lists.put(BASE, *blocks)
    assert len(lists.resolve(MAX_DESCRIPTORS, BASE, 16 * MAX_DESCRIPTORS, LAST)) == MAX_DESCRIPTORS
    assert lists.status(4096, BASE, 16 * (MAX_DESCRIPTORS + 1), LAST) == Status.INVALID_SGL_COUNT
    assert lists.status(512, BASE, 0xFFFFFFF0, LAST) == Status.INVALID_SGL_COUNT
    lists.put(BASE, descriptor(0, 0), descriptor(BASE, 32, SEGMENT))
    assert lists.status(512, BASE, 32, SEGMENT) == Status.INVALID_SGL_COUNT
    lists.put(BASE, descriptor(BASE, 16, SEGMENT))
    assert lists.status(512, BASE, 16, SEGMENT) == Status.INVALID_SGL_COUNT


STATUSES = {
    Status.INVALID_SGL_SEGMENT,
    Status.INVALID_SGL_COUNT,
    Status.DATA_SGL_LENGTH_INVALID,
    Status.SGL_TYPE_INVALID,
    Status.DATA_TRANSFER_ERROR,
}


def resolved(
    lists: Lists, length: int, address: int, size: int, identifier: int
) -> list[tuple[int, int]] | Status:
    try:
        return lists.resolve(length, address, size, identifier)
    except CommandError as error:
        return error.status


@given(
    st.integers(0, 1 << 32),
    st.integers(0, SIZE + 64),
    st.integers(0, 1 << 14),
    st.sampled_from([BLOCK, SEGMENT, LAST]),
    st.integers(1, 1 << 20),
)
def test_whatever_the_lists_hold_the_answer_is_all_the_data_or_a_status(
    seed: int, place: int, size: int, identifier: int, length: int
) -> None:
    lists, chance = Lists(), random.Random(seed)
    for at in range(0, SIZE, 16 * 64):  # what is plausible, with a link here and there
        kinds = chance.choices((BLOCK, SEGMENT, LAST, BIT_BUCKET), (200, 3, 1, 1), k=64)
        lists.put(
            BASE + at,
            *(
                descriptor(
                    BASE + chance.randrange(SIZE) // 16 * 16,
                    chance.choice((16, 512, 1024, 4096, chance.getrandbits(12))),
                    kind,
                )
                for kind in kinds
            ),
        )
    found = resolved(lists, length, BASE + place // 8 * 8, size // 16 * 16, identifier)
    if isinstance(found, Status):
        assert found in STATUSES
    else:
        assert sum(count for _, count in found) == length
        assert all(count > 0 for _, count in found)
        assert len(found) <= MAX_DESCRIPTORS


# Commands.


def scattered(driver: NvmeDriver, length: int, *, per_segment: int = 4) -> tuple[dict[str, int], list[int]]:
    """SGL1 of `length` bytes in odd pieces, and where they lie, byte by byte."""
    chance, blocks, places = random.Random(length), list[bytes](), list[int]()
    while len(places) < length:
        count = min(chance.choice((1, 511, 512, 1000, 4096)), length - len(places))
        address = driver.memory.allocate(8192) + chance.randrange(4096)
        blocks.append(descriptor(address, count))
        places += range(address, address + count)
    link = b""
    while True:
        content = [*blocks[-per_segment:], link] if link else blocks[-per_segment:]
        del blocks[-per_segment:]
        segment = driver.memory.allocate(4096)
        driver.memory.write(segment, b"".join(content))
        identifier = SEGMENT if link else LAST
        size = 16 * len([each for each in content if each])
        if not blocks:
            return pointers(segment, size, identifier), places
        link = descriptor(segment, size, identifier)


@pytest.mark.parametrize("per_segment", [1, 4, 200])
@pytest.mark.parametrize("blocks", [1, 2, 17, 128])
def test_what_is_written_is_read(driver: NvmeDriver, blocks: int, per_segment: int) -> None:
    data = os.urandom(512 * blocks)
    fields, places = scattered(driver, len(data), per_segment=per_segment)
    for place, byte in zip(places, data, strict=True):
        driver.memory.write(place, bytes([byte]))
    driver.check(driver.io(IoOpcode.WRITE, cdw10=3, cdw12=blocks - 1, **fields))
    assert driver.read(3, blocks) == data
    driver.check(driver.io(IoOpcode.COMPARE, cdw10=3, cdw12=blocks - 1, **fields))
    for place in places:
        driver.memory.write(place, b"\0")
    assert driver.io(IoOpcode.COMPARE, cdw10=3, cdw12=blocks - 1, **fields).status == Status.COMPARE_FAILURE
    driver.check(driver.io(IoOpcode.READ, cdw10=3, cdw12=blocks - 1, **fields))
    assert b"".join(driver.memory.read(place, 1) for place in places) == data


def test_dataset_management(driver: NvmeDriver) -> None:
    """Its ranges are data, too."""
    driver.check(driver.write(0, b"\xff" * 2048))
    ranges = struct.pack("<IIQIIQ", 0, 1, 1, 0, 1, 3)
    address = driver.memory.allocate(4096) + 3
    driver.memory.write(address, ranges)
    fields = pointers(address, len(ranges))
    driver.check(driver.io(IoOpcode.DATASET_MANAGEMENT, cdw10=1, cdw11=4, **fields))
    assert driver.read(0, 4) == b"\xff" * 512 + bytes(512) + b"\xff" * 512 + bytes(512)
    short = pointers(address, len(ranges) - 1)
    completion = driver.io(IoOpcode.DATASET_MANAGEMENT, cdw10=1, cdw11=4, **short)
    assert completion.status == Status.DATA_SGL_LENGTH_INVALID


def test_mdts_holds(driver: NvmeDriver) -> None:
    """Of what is transferred, however long the list is."""
    address = driver.memory.allocate(1 << 20)
    driver.check(driver.io(IoOpcode.READ, cdw12=2047, **pointers(address, 0xFFFFFFFF)))
    completion = driver.io(IoOpcode.READ, cdw12=2048, **pointers(address, 0xFFFFFFFF))
    assert completion.status == Status.INVALID_FIELD


def test_an_error_tells_where_and_is_not_to_be_retried(driver: NvmeDriver) -> None:
    """Error Information (Base 5.16.1.2): byte 24 of the command."""
    completion = driver.io(IoOpcode.READ, **pointers(driver.memory.base, 512, BIT_BUCKET))
    assert completion.status == Status.SGL_TYPE_INVALID
    assert completion.do_not_retry
    assert driver.device.state.errors[0].location == 24
    completion = driver.io(IoOpcode.READ, **pointers(0x1000, 512))
    assert completion.status == Status.DATA_TRANSFER_ERROR
    assert not completion.do_not_retry


@pytest.mark.parametrize("flags", [SGL_AND_METADATA, RESERVED, SGL | 1, SGL | 2])
def test_other_flags(driver: NvmeDriver, flags: int) -> None:
    """Metadata with an SGL of its own (SGLS bit 19 is 0), the reserved PSDT, fused commands (FUSES is 0)."""
    fields = pointers(driver.memory.base, 512) | {"flags": flags}
    assert driver.io(IoOpcode.READ, **fields).status == Status.INVALID_FIELD


@pytest.mark.parametrize("flags", [SGL, SGL_AND_METADATA, RESERVED])
@pytest.mark.parametrize("opcode", [AdminOpcode.IDENTIFY, AdminOpcode.DOORBELL_BUFFER_CONFIG])
def test_admin_commands_have_none(driver: NvmeDriver, opcode: AdminOpcode, flags: int) -> None:
    """PRPs shall be used for all admin commands over PCIe (Base, Figure 87)."""
    fields = pointers(driver.memory.allocate(4096), 4096) | {"flags": flags}
    assert driver.admin(opcode, cdw10=Cns.CONTROLLER, **fields).status == Status.INVALID_FIELD
    assert driver.device.state.errors[0].location == 1


def test_identify_says_what_is_processed(driver: NvmeDriver) -> None:
    """SGLS (Base 5.17.2.1): any alignment; a list longer than the transfer; nothing else, no threshold."""
    assert int.from_bytes(driver.identify(Cns.CONTROLLER)[536:540], "little") == 1 << 18 | 1
