"""Region info, reads and writes."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable

import pytest

from iolane.carriers.vfio_user import Rejection, VfioUserClient, VfioUserError, VfioUserServer
from iolane.carriers.vfio_user.protocol import DeviceFlag, RegionFlag
from iolane.carriers.vfio_user.version import Capabilities
from iolane.model.region import Area
from tests.unit.carriers.vfio_user.sample import RawClient, Sample

READ_WRITE = RegionFlag.READ | RegionFlag.WRITE


def region_info(argsz: int, index: int) -> bytes:
    return struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0)


def test_device_info(client: VfioUserClient) -> None:
    info = client.device_info()
    assert info.flags == DeviceFlag.RESET | DeviceFlag.PCI
    assert (info.region_count, info.irq_count) == (9, 5)


def test_a_trapped_region(client: VfioUserClient) -> None:
    info = client.region_info(0)
    assert (info.flags, info.size, info.areas, info.fd) == (READ_WRITE, 4096, (), -1)


def test_absent_regions_have_no_size(client: VfioUserClient) -> None:
    for index in (6, 8):
        info = client.region_info(index)
        assert (info.flags, info.size) == (RegionFlag(0), 0)


def test_sparse_areas_are_asked_for_twice_as_qemu_does(raw: RawClient) -> None:
    first = raw.ask(5, region_info(32, 1))
    argsz, flags, index, cap_offset, size, _ = struct.unpack("<IIIIQQ", first)
    assert index == 1
    assert size == 0x4000
    assert flags == READ_WRITE | RegionFlag.MMAP | RegionFlag.CAPS
    assert cap_offset >= 32
    assert argsz == 32 + 8 + 8 + 2 * 16
    second = raw.ask(5, region_info(argsz, 1))
    assert len(second) == argsz
    assert struct.unpack_from("<HHI", second, cap_offset) == (1, 1, 0)


def test_memory_can_be_mapped_sparsely(client: VfioUserClient) -> None:
    info = client.region_info(1)
    assert info.areas == (Area(0x1000, 0x1000), Area(0x3000, 0x1000))
    with mmap.mmap(info.fd, 0x1000, offset=info.offset + 0x1000) as memory:
        memory[:4] = b"abcd"
        assert client.read_bytes(1, 0x1000, 4) == b"abcd"
        client.write_bytes(1, 0x1004, b"efgh", posted=True)
        client.read(1, 0, 4)
        assert memory[4:8] == b"efgh"
    os.close(info.fd)


def test_memory_can_be_mapped_as_a_whole(client: VfioUserClient) -> None:
    info = client.region_info(3)
    assert info.flags == READ_WRITE | RegionFlag.MMAP
    assert info.areas == (Area(0, 0x2000),)
    os.close(info.fd)


@pytest.mark.parametrize(("argsz", "index"), [(31, 0), (0, 0)])
def test_argsz_must_hold_the_fixed_part(
    raw: RawClient, rejected: Callable[[Rejection], int], argsz: int, index: int
) -> None:
    raw.refused(5, region_info(argsz, index))
    assert rejected(Rejection.ARGSZ) == 1


def test_region_indexes_end(raw: RawClient, rejected: Callable[[Rejection], int]) -> None:
    for index in (9, 0xFFFF_FFFF):
        raw.refused(5, region_info(32, index))
        raw.refused(6, struct.pack("<IIII", 64, 0, index, 0))
        raw.refused(9, struct.pack("<QII", 0, index, 4))
    assert rejected(Rejection.REGION_INDEX) == 6


def test_region_io_fds_are_an_empty_list(client: VfioUserClient) -> None:
    assert client.region_io_fds(0) == 0
    with pytest.raises(VfioUserError):
        client.region_io_fds(0, argsz=8)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_reads_and_writes_of_every_width(client: VfioUserClient, device: Sample, size: int) -> None:
    value = int.from_bytes(bytes(range(0x81, 0x81 + size)), "little")
    client.write(0, 8, size, value)
    assert client.read(0, 8, size) == value
    assert value == device.bar0.WIDE
    client.write(0, 8, size, 0, posted=True)
    assert client.read(0, 8, size) == 0


def test_odd_lengths_and_offsets(client: VfioUserClient) -> None:
    client.write_bytes(0, 1, b"abcdefghijk")
    assert client.read_bytes(0, 1, 3) == b"abc"
    assert client.read_bytes(0, 8, 4) == b"hijk"
    assert client.read_bytes(0, 0, 4096)[1:4] == b"abc"
    client.write_bytes(0, 0x20, b"xyz")
    assert client.read_bytes(0, 0x20, 4) == b"xyz\0"


def test_a_read_hook_runs(client: VfioUserClient) -> None:
    client.write(0, 4, 4, 0x0F0F)
    assert client.read(0, 4, 4) == 0xFFFF_F0F0


def test_config_space(client: VfioUserClient) -> None:
    assert client.config_read(0, 4) == 0x5A5A_1234
    assert client.config_read(0, 8) & 0xFFFF_FFFF == 0x5A5A_1234
    assert client.config_read(2, 2) == 0x5A5A


def test_nothing_is_read_or_written_outside(
    client: VfioUserClient, device: Sample, rejected: Callable[[Rejection], int]
) -> None:
    for offset, size in ((4096, 4), (4093, 4), (1 << 63, 8), ((1 << 64) - 1, 1), (0, 8192)):
        with pytest.raises(VfioUserError, match="Bad address"):
            client.read_bytes(0, offset, size)
        with pytest.raises(VfioUserError, match="Bad address"):
            client.write_bytes(0, offset, bytes(size))
    for index in (6, 8):
        with pytest.raises(VfioUserError, match="Bad address"):
            client.read(index, 0, 4)
    assert rejected(Rejection.REGION_RANGE) == 12


def test_the_data_is_as_long_as_the_count(raw: RawClient, rejected: Callable[[Rejection], int]) -> None:
    raw.refused(10, struct.pack("<QII", 0, 0, 4) + b"abc")
    raw.refused(10, struct.pack("<QII", 0, 0, 4) + b"abcde")
    raw.refused(10, struct.pack("<QII", 0, 0, 0xFFFF_FFFF))
    assert rejected(Rejection.REGION_COUNT) == 3
    raw.refused(9, struct.pack("<QII", 0, 0, 4) + b"x")
    raw.refused(9, b"short")
    assert rejected(Rejection.PAYLOAD_SIZE) == 2


def test_the_clients_own_limits_hold(server: VfioUserServer) -> None:
    with VfioUserClient(server.path) as client:
        client.negotiate(Capabilities(max_data_xfer_size=64, max_msg_fds=0))
        assert len(client.read_bytes(0, 0, 64)) == 64
        with pytest.raises(VfioUserError, match="Invalid argument"):
            client.read_bytes(0, 0, 65)
        assert client.region_info(3).flags == READ_WRITE  # no descriptor can be sent, so nothing is mapped


def test_an_empty_read_and_write_are_checked_only(raw: RawClient) -> None:
    assert raw.ask(9, struct.pack("<QII", 4096, 0, 0)) == struct.pack("<QII", 4096, 0, 0)
    assert raw.ask(10, struct.pack("<QII", 0, 0, 0)) == struct.pack("<QII", 0, 0, 0)


def test_several_writes_in_one_message(client: VfioUserClient, device: Sample) -> None:
    writes = [(0, 0, b"\1\0\0\0"), (0, 8, bytes(range(8))), (0, 0x21, b"\7")]
    client.write_multi(writes)
    assert device.bar0.PLAIN == 1
    assert int.from_bytes(bytes(range(8)), "little") == device.bar0.WIDE
    assert device.bar0.BYTES[1] == 7
    client.write_multi([(0, 0, b"\2\0\0\0")], posted=True)
    assert client.read(0, 0, 4) == 2


def test_no_write_of_a_bad_multi_is_made(
    raw: RawClient, device: Sample, rejected: Callable[[Rejection], int]
) -> None:
    good = struct.pack("<QII8s", 0, 0, 4, b"\1\1\1\1")
    for payload in (
        struct.pack("<Q", 2) + good,
        struct.pack("<Q", 1 << 63) + good,
        struct.pack("<Q", 2) + good + struct.pack("<QII8s", 0, 0, 9, b""),
    ):
        raw.refused(15, payload)
    assert rejected(Rejection.WRITE_MULTI_COUNT) == 3
    raw.refused(15, struct.pack("<Q", 2) + good + struct.pack("<QII8s", 4096, 0, 1, b""))
    assert rejected(Rejection.REGION_RANGE) == 1
    assert device.bar0.PLAIN == 0


def test_a_bug_of_the_device_is_an_error_reply(client: VfioUserClient, device: Sample) -> None:
    with pytest.raises(VfioUserError, match="Input/output error"):
        client.write(0, 0x1C, 4, 5)
    client.write(0, 0x1C, 4, 5, posted=True)
    assert client.read(0, 0, 4) == 0
    assert device.error_count == 2
