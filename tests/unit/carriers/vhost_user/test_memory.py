"""The memory table, whole or slot by slot, at any address, and under rings that run."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from iolane.carriers.vhost_user import FrontEnd, Rejection, SharedMemory, VhostUserError, VhostUserServer
from iolane.carriers.vhost_user.memory import Region
from iolane.carriers.vhost_user.protocol import MEMORY_HEADER, MEMORY_REGION, SINGLE_REGION, Request
from iolane.testing.drivers.virtio import DriverMemory
from tests.unit.carriers.vhost_user.sample import ECHO, MEMORY, WANTED, Driver, RawFront, Sample, open_fds

Rejected = Callable[[Rejection], int]
AddDriver = Callable[..., Driver]
TOP = 1 << 64


def echo(server: VhostUserServer, front: FrontEnd, memory: SharedMemory) -> None:
    heap = DriverMemory(memory.view, memory.guest_address)
    driver = Driver(heap, front.kicker(ECHO), front.rings[ECHO].wait_call)
    front.start(ECHO, driver.ring)
    assert driver.ask(b"hello") == b"olleh"


@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize(
    ("guest", "user", "offset"),
    [
        (0, 0x7F00_0000_0000, 0),
        (0x1003_0000_0000, 0x1003_0000_0000, 0),  # DPDK's virtio-user: both are its own addresses
        (1 << 32, 0, 0),
        (TOP - MEMORY, TOP - MEMORY, 0),
        (0x1000_0000, 0x5555_0000_0000, 0x20_0000),
        (0x10_0200, 0x5555_0000_0200, 0x200),  # nothing on a page
    ],
)
def test_memory_at_any_address(
    server: VhostUserServer, guest: int, user: int, offset: int, slots: bool
) -> None:
    with SharedMemory(MEMORY, guest_address=guest, user_address=user, offset=offset) as memory:
        with FrontEnd(server.path, [memory], wanted=WANTED, slots=slots) as front:
            echo(server, front, memory)
        assert server.wait_idle(30)


def test_several_regions(server: VhostUserServer, device: Sample) -> None:
    """Rings in one, buffers in another."""
    with (
        SharedMemory(MEMORY, guest_address=0) as low,
        SharedMemory(MEMORY, guest_address=1 << 32, user_address=0x1234_0000) as high,
        FrontEnd(server.path, [low, high], wanted=WANTED) as front,
    ):
        rings = DriverMemory(low.view, low.guest_address)
        driver = Driver(rings, front.kicker(ECHO), front.rings[ECHO].wait_call)
        front.start(ECHO, driver.ring)
        high.view[:3] = b"abc"
        driver.ring.add([(high.guest_address, 3)], [(high.guest_address + 100, 3)])
        driver.ring.kick()
        driver.wait_used(1)
        assert bytes(high.view[100:103]) == b"cba"


def test_a_new_table_under_a_running_ring(
    front: FrontEnd, add_driver: AddDriver, memory: SharedMemory, device: Sample
) -> None:
    driver = add_driver()
    driver.ask(b"ab")
    with SharedMemory(MEMORY, guest_address=1 << 40, user_address=1 << 41) as more:
        front.client.set_mem_table([memory, more])
        assert len(device.dma.maps) == 2
        assert driver.ask(b"cd") == b"dc"
        front.client.set_mem_table([memory])
    assert driver.ask(b"ef") == b"fe"
    assert front.stop(ECHO) == 3


def test_slots_come_and_go_under_a_running_ring(
    front: FrontEnd, add_driver: AddDriver, memory: SharedMemory, device: Sample
) -> None:
    driver = add_driver()
    with SharedMemory(MEMORY, guest_address=1 << 40, user_address=1 << 41) as more:
        front.client.add_mem_reg(more.region, more.fd)
        assert driver.ask(b"ab") == b"ba"
        front.client.rem_mem_reg(more.region)
    assert driver.ask(b"cd") == b"dc"
    front.client.rem_mem_reg(memory.region)
    driver.ring.send(b"ef", 2)
    driver.ring.kick()
    assert not driver.ring.collect()
    front.client.add_mem_reg(memory.region, memory.fd)
    assert driver.answers(1)[0].data == b"fe"


def test_memory_that_moved_under_a_running_ring(
    front: FrontEnd, add_driver: AddDriver, memory: SharedMemory
) -> None:
    """Cached addresses would be those of the region before."""
    driver = add_driver()
    driver.ask(b"ab")
    front.client.rem_mem_reg(memory.region)
    front.client.add_mem_reg(memory.region._replace(guest_address=1 << 50), memory.fd)
    heap = driver.ring.memory
    data = heap.allocate(2)
    heap.write(data, b"xy")
    answer = heap.allocate(2)
    moved = (1 << 50) - memory.guest_address
    driver.ring.add([(data + moved, 2)], [(answer + moved, 2)])
    driver.ring.kick()
    driver.wait_used(2)
    assert heap.read(answer, 2) == b"yx"


def table(*regions: tuple[int, int, int, int]) -> bytes:
    return MEMORY_HEADER.pack(len(regions), 0) + b"".join(MEMORY_REGION.pack(*region) for region in regions)


WRONG_REGIONS = [
    ((0, 0, 0, 0), Rejection.REGION_RANGE),
    ((TOP - 4096, 8192, 0, 0), Rejection.REGION_RANGE),
    ((0, 8192, TOP - 4096, 0), Rejection.REGION_RANGE),
    ((0, 4096, 0, TOP - 4096), Rejection.REGION_FILE),
    ((0, TOP - 1, 0, 0), Rejection.REGION_FILE),
    ((0, MEMORY + 1, 0, 0), Rejection.REGION_FILE),
    ((0, MEMORY, 0, 1), Rejection.REGION_FILE),
]


@pytest.mark.parametrize(("region", "rejection"), WRONG_REGIONS)
@pytest.mark.parametrize("whole", [True, False])
def test_what_regions_can_t_be(
    raw: RawFront,
    memory: SharedMemory,
    rejected: Rejected,
    region: tuple[int, int, int, int],
    rejection: Rejection,
    whole: bool,
) -> None:
    before = open_fds()
    if whole:
        error = raw.number(Request.SET_MEM_TABLE, table(region), fds=[memory.fd])
    else:
        error = raw.number(Request.ADD_MEM_REG, SINGLE_REGION.pack(0, *region), fds=[memory.fd])
    assert error == rejection.error
    assert rejected(rejection) == 1
    assert open_fds() == before


def test_regions_do_not_overlap(raw: RawFront, memory: SharedMemory, device: Sample) -> None:
    first, second = (0x1000, 0x2000, 0, 0), (0x2000, 0x1000, 0x10000, 0)
    error = raw.number(Request.SET_MEM_TABLE, table(first, second), fds=[memory.fd, memory.fd])
    assert error == errno.EEXIST
    assert not device.dma.maps
    assert raw.number(Request.ADD_MEM_REG, SINGLE_REGION.pack(0, *first), fds=[memory.fd]) == 0
    assert raw.number(Request.ADD_MEM_REG, SINGLE_REGION.pack(0, *second), fds=[memory.fd]) == errno.EEXIST
    assert len(device.dma.maps) == 1


def test_files_that_are_no_memory(raw: RawFront, rejected: Rejected) -> None:
    region = table((0, 4096, 0, 0))
    with open("/dev/zero", "rb") as zero, open(os.devnull, "wb") as null:
        for file in (zero, null):
            assert raw.number(Request.SET_MEM_TABLE, region, fds=[file.fileno()]) == errno.EBADF
    sealed = os.memfd_create("guest")
    os.ftruncate(sealed, 8192)
    read_only = os.open(f"/proc/self/fd/{sealed}", os.O_RDONLY)
    assert raw.number(Request.SET_MEM_TABLE, region, fds=[read_only]) == errno.EBADF
    assert rejected(Rejection.REGION_FILE) == 3
    os.close(sealed)
    os.close(read_only)


def test_numbers_of_regions_and_descriptors(raw: RawFront, memory: SharedMemory, rejected: Rejected) -> None:
    one = (0, 4096, 0, 0)
    assert raw.number(Request.SET_MEM_TABLE, table(), fds=[memory.fd]) == errno.ENOSPC
    assert raw.number(Request.SET_MEM_TABLE, MEMORY_HEADER.pack(9, 0), fds=[memory.fd]) == errno.ENOSPC
    assert raw.number(Request.SET_MEM_TABLE, MEMORY_HEADER.pack(1, 0), fds=[memory.fd]) == errno.ENODATA
    assert raw.number(Request.SET_MEM_TABLE, table(one), fds=[memory.fd] * 2) == errno.EBADF
    assert raw.number(Request.SET_MEM_TABLE, table(one)) == errno.EBADF
    assert raw.number(Request.ADD_MEM_REG, SINGLE_REGION.pack(0, *one)) == errno.EBADF
    assert raw.number(Request.ADD_MEM_REG, SINGLE_REGION.pack(0, *one), fds=[memory.fd] * 2) == errno.EBADF


def test_as_many_slots_as_were_said(raw: RawFront, memory: SharedMemory, rejected: Rejected) -> None:
    slots = raw.number(Request.GET_MAX_MEM_SLOTS)
    assert slots == 509
    before = open_fds()
    for number in range(slots):
        payload = SINGLE_REGION.pack(0, number << 32, 4096, number << 32, 0)
        assert raw.number(Request.ADD_MEM_REG, payload, fds=[memory.fd]) == 0
    payload = SINGLE_REGION.pack(0, 1 << 50, 4096, 0, 0)
    assert raw.number(Request.ADD_MEM_REG, payload, fds=[memory.fd]) == errno.ENOSPC
    assert open_fds() == before


def test_a_slot_is_removed_by_its_place(raw: RawFront, memory: SharedMemory, device: Sample) -> None:
    region = Region(0x1000, 0x1000, 0x7000, 0x2000)
    assert raw.number(Request.ADD_MEM_REG, SINGLE_REGION.pack(0, *region), fds=[memory.fd]) == 0
    for wrong in (
        region._replace(size=0x800),
        region._replace(user_address=0),
        region._replace(guest_address=0),
    ):
        assert raw.number(Request.REM_MEM_REG, SINGLE_REGION.pack(0, *wrong)) == errno.ENOENT
    offset_ignored = region._replace(mmap_offset=0)
    before = open_fds()
    payload = SINGLE_REGION.pack(0, *offset_ignored)
    assert raw.number(Request.REM_MEM_REG, payload, fds=[memory.fd]) == 0  # as QEMU before 6.0
    assert open_fds() == before
    assert not device.dma.maps


def test_truncated_memory_breaks_the_ring_and_nothing_else(
    front: FrontEnd, add_driver: AddDriver, memory: SharedMemory, device: Sample
) -> None:
    driver = add_driver()
    driver.ask(b"ab")
    driver.ring.send(b"cd", 2)
    os.ftruncate(memory.fd, 0)
    front.rings[ECHO].kick()
    assert front.rings[ECHO].broken(30)
    assert device.counters["rejected_ring_unreachable"] == 1
    front.client.get_features()
    assert front.stop(ECHO) in (1, 2)


def test_memory_is_given_back_at_the_end(
    server: VhostUserServer, memory: SharedMemory, device: Sample, tmp_path: object
) -> None:
    before = open_fds()
    with FrontEnd(server.path, [memory], wanted=WANTED) as front:
        echo(server, front, memory)
    assert server.wait_idle(30)
    assert not device.dma.maps
    assert open_fds() == before


def test_a_stopped_ring_keeps_no_memory(server: VhostUserServer, memory: SharedMemory) -> None:
    """Its thread may linger, but not beyond a change of the memory table."""
    with FrontEnd(server.path, [memory], wanted=WANTED, slots=True) as front:
        echo(server, front, memory)
        inode = os.fstat(memory.fd).st_ino
        assert mappings(inode) > 1
        front.stop(ECHO)
        front.client.rem_mem_reg(memory.region)
        assert mappings(inode) == 1  # the test's own


def mappings(inode: int) -> int:
    """How often this process has mapped a file."""
    return sum(line.split()[4] == str(inode) for line in Path("/proc/self/maps").read_text().splitlines())


def test_a_file_shorter_than_it_said(front: FrontEnd, memory: SharedMemory, rejected: Rejected) -> None:
    with SharedMemory(4096, guest_address=1 << 40) as short:
        with pytest.raises(VhostUserError) as refused:
            front.client.add_mem_reg(short.region._replace(size=8192), short.fd)
    assert refused.value.errno == errno.EBADF
