"""DMA maps, as QEMU and as a hostile client make them."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iolane.carriers.vfio_user import Rejection, VfioUserClient, VfioUserError, VfioUserServer
from iolane.carriers.vfio_user.protocol import MapFlag, UnmapFlag
from iolane.model.dma import DmaFault, FaultReason, MapKind
from tests.unit.carriers.vfio_user.sample import PAGE, RAM, RawClient, Sample, memory_fd, open_fds

RW = MapFlag.READ | MapFlag.WRITE


@pytest.fixture
def ram() -> Iterator[int]:
    fd = memory_fd()
    yield fd
    os.close(fd)


def dma_map(address: int, size: int, *, flags: int = RW, offset: int = 0, argsz: int = 32) -> bytes:
    return struct.pack("<IIQQQ", argsz, flags, offset, address, size)


def dma_unmap(address: int, size: int, *, flags: int = 0, argsz: int = 24) -> bytes:
    return struct.pack("<IIQQ", argsz, flags, address, size)


def areas() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def test_memory_is_shared(client: VfioUserClient, device: Sample, ram: int) -> None:
    client.dma_map(0x10000, RAM // 2, fd=ram, offset=RAM // 2)
    os.pwrite(ram, b"from the guest", RAM // 2)
    assert device.dma.read(0x10000, 14) == b"from the guest"
    device.dma.write(0x10000 + RAM // 2 - 4, b"back")
    assert os.pread(ram, 4, RAM - 4) == b"back"


def test_seabios_maps_low_memory_again_and_again(client: VfioUserClient, device: Sample, ram: int) -> None:
    before = open_fds()
    for _ in range(10):
        client.dma_map(0, 0xA0000, fd=ram)
        client.dma_map(0xC0000, 0x40000, fd=ram, offset=0xC0000, flags=MapFlag.READ)
        client.dma_unmap(0, 0xA0000)
        client.dma_unmap(0xC0000, 0x40000)
    assert device.dma.maps == []
    assert open_fds() == before


def test_a_rom_is_mapped_for_reading(client: VfioUserClient, device: Sample, ram: int) -> None:
    client.dma_map(0, PAGE, fd=ram, flags=MapFlag.READ)
    with pytest.raises(DmaFault, match="read-only"):
        device.dma.write(0, b"x")


def test_a_page_each_with_the_same_file_as_with_a_viommu(
    client: VfioUserClient, device: Sample, ram: int
) -> None:
    before = open_fds()
    areas_before = areas()
    for page in range(RAM // PAGE):
        client.dma_map(page * PAGE, PAGE, fd=ram, offset=RAM - (page + 1) * PAGE)
    assert len(device.dma.maps) == RAM // PAGE
    assert open_fds() <= before + 1
    assert areas() <= areas_before + 2
    client.dma_unmap(0, 1 << 39)  # at detach: a blanket
    assert device.dma.maps == []


def test_blanket_unmaps_of_nothing_succeed(client: VfioUserClient) -> None:
    client.dma_unmap(0, 1 << 63)
    client.dma_unmap(1 << 63, 1 << 63)
    client.dma_unmap_all()


def test_unmapping_everything(client: VfioUserClient, device: Sample, ram: int) -> None:
    client.dma_map(0, PAGE, fd=ram)
    client.dma_map(1 << 40, PAGE, fd=ram)
    client.dma_unmap_all()
    assert device.dma.maps == []


def test_a_map_at_the_end_of_the_address_space(client: VfioUserClient, device: Sample, ram: int) -> None:
    top = (1 << 64) - PAGE
    client.dma_map(top, PAGE, fd=ram)
    device.dma.write(top + PAGE - 1, b"z")
    assert os.pread(ram, 1, PAGE - 1) == b"z"


def test_memory_without_a_descriptor_is_reached_by_messages(client: VfioUserClient, device: Sample) -> None:
    client.dma_map(0, PAGE)
    assert device.dma.maps[0][3] is MapKind.INDIRECT


@pytest.mark.parametrize("hint", [MapFlag.MMAP, MapFlag.FILE_IO])
def test_libvfio_users_hints(client: VfioUserClient, device: Sample, ram: int, hint: int) -> None:
    client.dma_map(0, PAGE, fd=ram, flags=RW | hint)
    assert device.dma.maps[0][3] is MapKind.FILE
    with pytest.raises(VfioUserError):
        client.dma_map(PAGE, PAGE, flags=RW | hint)


@pytest.mark.parametrize(
    ("payload", "rejection"),
    [
        (dma_map(0, PAGE, flags=0), Rejection.DMA_FLAGS),
        (dma_map(0, PAGE, flags=RW | 0x10), Rejection.DMA_FLAGS),
        (dma_map(0, PAGE, argsz=31), Rejection.ARGSZ),
        (dma_map(0, PAGE) + b"x", Rejection.PAYLOAD_SIZE),
        (dma_map(0, PAGE)[:-1], Rejection.PAYLOAD_SIZE),
        (dma_map(0, 0), Rejection.DMA_RANGE),
        (dma_map((1 << 64) - PAGE, 2 * PAGE), Rejection.DMA_RANGE),
        (dma_map(0, (1 << 64) - 1), Rejection.DMA_RANGE),
        (dma_map(1, PAGE), Rejection.DMA_RANGE),
        (dma_map(0, PAGE - 1), Rejection.DMA_RANGE),
        (dma_map(0, PAGE, offset=1), Rejection.DMA_RANGE),
        (dma_map(0, 2 * RAM), Rejection.DMA_FILE),
        (dma_map(0, PAGE, offset=(1 << 64) - PAGE), Rejection.DMA_FILE),
        (dma_map(0, 1 << 63), Rejection.DMA_FILE),
    ],
)
def test_bad_maps_are_refused(
    raw: RawClient,
    device: Sample,
    ram: int,
    rejected: Callable[[Rejection], int],
    payload: bytes,
    rejection: Rejection,
) -> None:
    before = open_fds()
    assert raw.refused(2, payload, fds=[ram]) == rejection.error
    assert rejected(rejection) == 1
    assert device.dma.maps == []
    assert open_fds() == before


def test_files_that_cannot_be_mapped(
    raw: RawClient, rejected: Callable[[Rejection], int], ram: int, tmp_path: os.PathLike[str]
) -> None:
    reader, writer = os.pipe()
    folder = os.open(tmp_path, os.O_RDONLY)
    null = os.open("/dev/null", os.O_RDWR)
    read_only = os.open(f"/proc/self/fd/{ram}", os.O_RDONLY)
    event = os.eventfd(0)
    given = [reader, writer, folder, null, read_only, event]
    before = open_fds()
    for fd in given:
        raw.refused(2, dma_map(0, PAGE), fds=[fd])
    assert rejected(Rejection.DMA_FILE) == len(given)
    assert open_fds() == before
    raw.ask(2, dma_map(0, PAGE, flags=MapFlag.READ), fds=[read_only])
    for fd in given:
        os.close(fd)


def test_a_map_over_a_map_is_eexist(raw: RawClient, rejected: Callable[[Rejection], int], ram: int) -> None:
    raw.ask(2, dma_map(0, 4 * PAGE), fds=[ram])
    for address, size in ((0, 4 * PAGE), (3 * PAGE, 2 * PAGE), (PAGE, PAGE)):
        assert raw.refused(2, dma_map(address, size), fds=[ram]) == 17
    assert rejected(Rejection.DMA_OVERLAP) == 3


def test_one_descriptor_is_enough(raw: RawClient, rejected: Callable[[Rejection], int], ram: int) -> None:
    before = open_fds()
    raw.refused(2, dma_map(0, PAGE), fds=[ram, ram])
    raw.refused(13, fds=[ram])
    assert rejected(Rejection.FDS_UNWANTED) == 2
    assert open_fds() == before


@pytest.mark.parametrize(
    ("payload", "rejection"),
    [
        (dma_unmap(0, PAGE), Rejection.DMA_STRADDLE),
        (dma_unmap(PAGE, 4 * PAGE), Rejection.DMA_STRADDLE),
        (dma_unmap(0, 0), Rejection.DMA_RANGE),
        (dma_unmap(1 << 63, (1 << 63) + 1), Rejection.DMA_RANGE),
        (dma_unmap(0, PAGE, flags=UnmapFlag.ALL), Rejection.DMA_RANGE),
        (dma_unmap(0, PAGE, flags=4), Rejection.DMA_FLAGS),
        (dma_unmap(0, PAGE, argsz=23), Rejection.ARGSZ),
        (dma_unmap(0, PAGE, argsz=0xFFFF_FFFF), Rejection.ARGSZ),
        (dma_unmap(0, 4 * PAGE, flags=UnmapFlag.GET_DIRTY_BITMAP), Rejection.PAYLOAD_SIZE),
        (
            dma_unmap(0, 4 * PAGE, flags=UnmapFlag.GET_DIRTY_BITMAP) + struct.pack("<QQ", PAGE, 8),
            Rejection.ARGSZ,
        ),
        (
            dma_unmap(0, 4 * PAGE, flags=UnmapFlag.GET_DIRTY_BITMAP, argsz=48) + struct.pack("<QQ", PAGE, 8),
            Rejection.DMA_BITMAP,
        ),
        (
            dma_unmap(0, 4 * PAGE, flags=UnmapFlag.GET_DIRTY_BITMAP, argsz=48) + struct.pack("<QQ", PAGE, 0),
            Rejection.DMA_BITMAP,
        ),
    ],
)
def test_bad_unmaps_are_refused(
    raw: RawClient,
    device: Sample,
    ram: int,
    rejected: Callable[[Rejection], int],
    payload: bytes,
    rejection: Rejection,
) -> None:
    raw.ask(2, dma_map(0, 4 * PAGE), fds=[ram])
    assert raw.refused(3, payload) == rejection.error
    assert rejected(rejection) == 1
    assert len(device.dma.maps) == 1


def test_an_unmap_can_report_dirty_pages(client: VfioUserClient, device: Sample, ram: int) -> None:
    client.dma_map(0, 16 * PAGE, fd=ram)
    client.start_dirty_log()
    device.dma.write(9 * PAGE, b"x")
    request = dma_unmap(0, 16 * PAGE, flags=UnmapFlag.GET_DIRTY_BITMAP, argsz=48) + struct.pack(
        "<QQ", PAGE, 8
    )
    answer = client.request(3, request)
    assert answer == request + (1 << 9).to_bytes(8, "little")
    assert device.dma.maps == []


def test_a_truncated_file_marks_the_memory_broken(
    client: VfioUserClient, server: VfioUserServer, device: Sample, ram: int
) -> None:
    client.dma_map(0, RAM, fd=ram)
    assert device.dma.read(RAM - 4, 4) == bytes(4)
    os.ftruncate(ram, PAGE)
    with pytest.raises(DmaFault) as caught:
        device.dma.read(RAM - 4, 4)
    assert caught.value.reason is FaultReason.BROKEN
    assert client.read(0, 0, 4) == 0
    client.dma_unmap(0, RAM)
    assert server.running


def test_bus_master_is_checked_by_us(client: VfioUserClient, device: Sample, ram: int) -> None:
    client.dma_map(0, PAGE, fd=ram)
    client.config_write(4, 2, 0x2)
    with pytest.raises(DmaFault, match="bus mastering is off"):
        device.dma.read(0, 4)
