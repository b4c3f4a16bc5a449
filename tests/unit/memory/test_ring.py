"""The compiled queue with images: what is read and written, and what is left to Python."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.memory.mapping import Mapping
from iolane.memory.ring import BAD_INDEX, BROKEN_MEMORY, CHAIN, HEAD_IN_FLIGHT, BlockPath, RegionTable
from tests.unit.memory.ring_rig import BYTES, CACHED, DIRECT, FLUSH, IN, MAPPED, OUT, START, RingRig, path_of

SECTORS = 256
MODES = pytest.mark.parametrize("mode", [MAPPED, CACHED, DIRECT], ids=["mapped", "cached", "direct"])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(random.Random(5).randbytes(SECTORS * 512))
    return path


@pytest.fixture
def fd(image: Path) -> Iterator[int]:
    fd = os.open(image, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def opened(image: Path) -> Iterator[list[int]]:
    fds: list[int] = []
    yield fds
    for fd in fds:
        os.close(fd)


def image_path(image: Path, mode: int, opened: list[int], **options: bool) -> BlockPath:
    try:
        opened.append(os.open(image, os.O_RDWR | (os.O_DIRECT if mode == DIRECT else 0)))
    except OSError:
        pytest.skip("the file system has no O_DIRECT")
    return path_of(opened[-1], SECTORS * 512, mode, **options)


@MODES
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("indirect", [False, True], ids=["chained", "indirect"])
def test_what_is_written_is_read(
    image: Path, opened: list[int], mode: int, event_idx: bool, indirect: bool
) -> None:
    """2000 requests in batches: the queue wraps, and the indexes pass 65535."""
    model = bytearray(image.read_bytes())
    chance = random.Random(mode)
    path = image_path(image, mode, opened)
    with RingRig(path, event_idx=event_idx, indirect=indirect, index=65000) as rig:
        for _ in range(600):
            expected: dict[int, bytes] = {}
            writes: list[tuple[int, bytes]] = []
            free = list(range(0, SECTORS, 8))
            for _ in range(chance.randrange(1, 5)):
                sector = free.pop(chance.randrange(len(free)))
                length = 512 * chance.randrange(1, 9)
                cut = 512 * chance.randrange(2) if length > 512 and indirect else 0
                if chance.random() < 0.5:
                    data = chance.randbytes(length)
                    head = rig.send(OUT, sector, data, indirect=indirect, cut=cut)
                    writes.append((sector * 512, data))
                    expected[head] = b"\0"
                else:
                    head = rig.send(IN, sector, length, indirect=indirect, cut=cut)
                    expected[head] = bytes(model[sector * 512 : sector * 512 + length]) + b"\0"
            for used in rig.wait(len(expected)):
                assert used.data == expected[used.head]
            for at, data in writes:
                model[at : at + len(data)] = data
        assert rig.events == []
        assert rig.queue.used_index == rig.driver.available_index
    assert image.read_bytes() == model


@MODES
def test_the_counts(image: Path, opened: list[int], mode: int) -> None:
    """As Python's queue counts: what the device reads and writes, the header and the status included."""
    with RingRig(image_path(image, mode, opened)) as rig:
        rig.send(OUT, 0, bytes(1024))
        rig.send(IN, 8, 512)
        rig.wait(2)
        rig.stop()  # the driver may see a chain before it is counted
        queue = rig.queue
        assert (queue.requests, queue.slow) == (2, 0)
        assert (queue.bytes_read, queue.bytes_written) == (1024 + 16 + 16, 1 + 512 + 1)
        assert queue.kicks >= 1
        assert queue.interrupts + queue.suppressed == queue.batches


@MODES
def test_after_a_stop_it_goes_on(image: Path, opened: list[int], mode: int) -> None:
    with RingRig(image_path(image, mode, opened)) as rig:
        for _ in range(5):
            rig.send(IN, 0, 512)
            rig.wait(1)
            rig.stop()
            rig.send(IN, 1, 512)
            rig.driver.kick()
            assert rig.driver.collect() == []
            rig.start()
            rig.wait(1)


@MODES
def test_other_sizes(image: Path, opened: list[int], mode: int) -> None:
    """`become`: the image grew; what lies behind the earlier end goes the fast way from now on."""
    path = image_path(image, mode, opened)
    with RingRig(path) as rig:
        rig.send(IN, SECTORS, 512)
        rig.wait(1)
        assert len(rig.events) == 1
        rig.stop()
        os.truncate(image, 2 * SECTORS * 512)
        path.become(path_of(opened[0], 2 * SECTORS * 512, mode))
        rig.start()
        rig.send(IN, SECTORS, 512)
        (used,) = rig.wait(1)
        assert used.data == bytes(513)
        assert len(rig.events) == 1


def test_another_kind_of_path(image: Path, opened: list[int]) -> None:
    """What was mapped may come back as a file that is not: the queue opens io_uring when it needs it."""
    path = image_path(image, MAPPED, opened)
    with RingRig(path) as rig:
        rig.send(IN, 0, 512)
        first = rig.wait(1)[0].data
        rig.stop()
        path.become(path_of(opened[0], SECTORS * 512, CACHED))
        rig.start()
        os.posix_fadvise(opened[0], 0, 0, os.POSIX_FADV_DONTNEED)
        rig.send(IN, 0, 512)
        assert rig.wait(1)[0].data == first
        assert rig.events == []


@MODES
def test_without_io_uring(image: Path, opened: list[int], mode: int) -> None:
    """Containers refuse it. No descriptor is to be had here, which is as good."""
    rig = RingRig(image_path(image, mode, opened))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    with rig:
        try:
            rig.send(IN, 0, 512)
            while rig.queue.used_index != 1:
                rig.driver._kick()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert rig.driver.collect()[0].data == image.read_bytes()[:512] + b"\0"
        rig.send(OUT, 0, bytes(512))
        rig.wait(1)
        assert rig.events == []


@pytest.mark.parametrize("event_idx", [False, True])
def test_kicks_are_asked_for_at_the_end(fd: int, event_idx: bool) -> None:
    """Whoever serves the ring next may wait for one."""
    with RingRig(path_of(fd, SECTORS * 512, MAPPED), event_idx=event_idx) as rig:
        for _ in range(20):
            rig.send(IN, 0, 512)
            rig.wait(1)
            rig.stop()
            rig.send(IN, 0, 512)
            assert rig.driver.kick()
            rig.start()
            rig.wait(1)


# What is left to Python.


@MODES
@pytest.mark.parametrize(
    ("kind", "sector", "data"),
    [
        (FLUSH, 0, 0),
        (IN, SECTORS, 512),
        (IN, SECTORS - 1, 1024),
        (IN, 2**64 - 1, 512),
        (IN, 2**55, 512),
        (IN, 0, 511),
        (OUT, SECTORS, bytes(512)),
        (OUT, 0, bytes(100)),
        (77, 0, 512),
    ],
)
def test_unusual_requests(
    image: Path, opened: list[int], mode: int, kind: int, sector: int, data: bytes | int
) -> None:
    before = image.read_bytes()
    with RingRig(image_path(image, mode, opened)) as rig:
        head = rig.send(kind, sector, data)
        rig.wait(1)
        assert rig.events == [(CHAIN, head)]
        assert rig.queue.slow == 1
    assert image.read_bytes() == before


def test_without_a_path_everything_is(image: Path) -> None:
    with RingRig(None) as rig:
        heads = [rig.send(IN, 0, 512) for _ in range(5)]
        rig.wait(5)
        assert rig.events == [(CHAIN, head) for head in heads]


@MODES
def test_writes_while_the_path_is_read_only(image: Path, opened: list[int], mode: int) -> None:
    """Write-through: Python writes and flushes. Reads stay compiled."""
    path = image_path(image, mode, opened, read_only=True)
    with RingRig(path) as rig:
        rig.send(OUT, 0, bytes(512))
        rig.wait(1)
        assert len(rig.events) == 1
        rig.send(IN, 0, 512)
        assert rig.wait(1)[0].data[:512] == image.read_bytes()[:512]
        path.read_only = False
        rig.send(OUT, 0, bytes(512))
        rig.wait(1)
        assert len(rig.events) == 1
    assert image.read_bytes()[:512] == bytes(512)


def test_a_full_disk() -> None:
    fd = os.open("/dev/full", os.O_RDWR)
    with RingRig(BlockPath(fd, 1 << 20, CACHED, own_fd=True)) as rig:
        head = rig.send(OUT, 0, bytes(512))
        rig.wait(1)
        assert rig.events == [(CHAIN, head)]


def test_chains_that_python_has_come_back_from_any_thread(fd: int) -> None:
    with RingRig(path_of(fd, SECTORS * 512, MAPPED), answer=False) as rig:
        head = rig.send(FLUSH, 0, 0)
        rig.driver.kick()
        assert rig.wait_event() == (CHAIN, head)
        rig.send(IN, 0, 512)
        rig.wait(1)  # it does not wait for the other
        rig.queue.complete(head, 1)
        rig.wait(1)
        with pytest.raises(ValueError, match="not taken"):
            rig.queue.complete(head, 1)


def test_what_is_completed_after_the_stop_is_settled(fd: int) -> None:
    with RingRig(path_of(fd, SECTORS * 512, MAPPED), answer=False) as rig:
        head = rig.send(FLUSH, 0, 0)
        rig.driver.kick()
        rig.wait_event()
        rig.stop()
        rig.queue.complete(head, 1)
        assert rig.driver.collect() == []
        assert rig.queue.settle() == (True, False), "interrupting is the caller's"
        assert rig.driver.collect()[0].head == head
        assert rig.queue.settle() == (False, False)


def test_adopted_chains(fd: int) -> None:
    """Taken in an earlier life: not in the available ring any more, and in flight."""
    rig = RingRig(path_of(fd, SECTORS * 512, MAPPED))
    rig.queue.adopt(3)
    with pytest.raises(ValueError, match="taken"):
        rig.queue.adopt(3)
    with pytest.raises(ValueError, match="taken"):
        rig.queue.adopt(16)
    with rig:
        rig.driver.offer(3)
        rig.driver.kick()
        assert rig.wait_event() == (HEAD_IN_FLIGHT, 3)


def test_a_chain_that_is_available_twice(fd: int) -> None:
    with RingRig(path_of(fd, SECTORS * 512, MAPPED), answer=False) as rig:
        head = rig.send(FLUSH, 0, 0)
        rig.driver.offer(head)
        rig.driver.kick()
        while len(rig.events) < 2:
            rig.wait_event()
        assert rig.events == [(CHAIN, head), (HEAD_IN_FLIGHT, head)]
        rig.stop()
        assert rig.queue.broken


def test_more_available_than_there_can_be(fd: int) -> None:
    with RingRig(path_of(fd, SECTORS * 512, MAPPED)) as rig:
        rig.heap.write(rig.driver.available + 2, (17).to_bytes(2, "little"))
        rig.driver._kick()
        assert rig.wait_event()[0] == BAD_INDEX
        rig.stop()
        assert rig.queue.broken


def test_a_head_that_is_no_descriptor(fd: int) -> None:
    with RingRig(path_of(fd, SECTORS * 512, MAPPED), answer=False) as rig:
        rig.driver.offer(16)
        rig.driver.kick()
        assert rig.wait_event() == (CHAIN, 16)


def test_a_broken_queue_takes_and_publishes_nothing(fd: int) -> None:
    with RingRig(path_of(fd, SECTORS * 512, MAPPED)) as rig:
        rig.slow = lambda event, head: False
        rig.stop()
        rig.start()
        rig.send(FLUSH, 0, 0)
        rig.driver.kick()
        while not rig.queue.broken:
            pass
        rig.send(IN, 0, 512)
        os.eventfd_write(rig.kick, 1)
        rig.stop()
        assert rig.queue.last_available == 1
        assert rig.driver.collect() == []


# Memory.


def two_regions(rig: RingRig, second_writable: bool = True) -> list[tuple[int, int, int, bool, int]]:
    middle = BYTES // 2
    address, broken = rig.mapping.address, rig.mapping.broken_address
    return [
        (START, middle, address, True, broken),
        (START + middle, BYTES - middle, address + middle, second_writable, broken),
    ]


def with_regions(rig: RingRig, path: BlockPath, regions: list[tuple[int, int, int, bool, int]]) -> None:
    driver = rig.driver
    rig.queue = type(rig.queue)(
        size=driver.size,
        descriptors=rig._host(driver.descriptors),
        available=rig._host(driver.available),
        used=rig._host(driver.used),
        regions=RegionTable(regions, keep=rig.mapping),
        event_idx=False,
        indirect=True,
        last_available=0,
        used_index=0,
        kick=rig.kick,
        call=rig.call,
        path=path,
    )


@pytest.mark.parametrize("indirect", [False, True])
def test_chains_over_several_regions(fd: int, indirect: bool) -> None:
    """Each descriptor in one region is fine; one that lies in two is Python's."""
    path = path_of(fd, SECTORS * 512, MAPPED)
    rig = RingRig(path)
    with_regions(rig, path, two_regions(rig))
    middle = START + BYTES // 2
    with rig:
        header, status = rig.heap.allocate(16), middle + 4096
        rig.heap.write(header, bytes(16))
        data = rig.heap.allocate(512)
        pieces = [(data, 512), (middle, 512), (middle - 512, 512), (status, 1)]
        rig.driver.add([(header, 16)], pieces, indirect=indirect)
        rig.wait(1)
        assert rig.events == []
        rig.driver.add([(header, 16)], [(middle - 256, 512), (status, 1)], indirect=indirect)
        rig.wait(1)
        assert len(rig.events) == 1


def test_memory_that_may_not_be_written(fd: int) -> None:
    path = path_of(fd, SECTORS * 512, MAPPED)
    rig = RingRig(path)
    with_regions(rig, path, two_regions(rig, second_writable=False))
    place = START + BYTES // 2
    rig.heap.write(place, bytes(4096))
    with rig:
        header, status = rig.heap.allocate(16), rig.heap.allocate(1)
        rig.heap.write(header, bytes(16))
        rig.driver.add([(header, 16)], [(place, 512), (status, 1)])
        rig.wait(1)
        assert len(rig.events) == 1
        assert rig.heap.read(place, 512) == bytes(512)
        rig.heap.write(header, (1).to_bytes(16, "little"))
        rig.driver.add([(header, 16), (place, 512)], [(status, 1)])
        rig.wait(1)
        assert len(rig.events) == 1, "the device may read it"


def test_a_region_at_the_end_of_the_address_space(fd: int) -> None:
    path = path_of(fd, SECTORS * 512, MAPPED)
    rig = RingRig(path)
    last = 2**64 - 8192
    extra = (last, 8192, rig.mapping.address + BYTES - 8192, True, rig.mapping.broken_address)
    with_regions(rig, path, [*two_regions(rig), extra])
    with rig:
        header, status = rig.heap.allocate(16), rig.heap.allocate(1)
        rig.heap.write(header, bytes(16))
        for length, slow in ((8192, 0), (8704, 1), (2**32 - 512, 2)):
            rig.driver.add([(header, 16)], [(last, length), (status, 1)])
            rig.wait(1)
            assert len(rig.events) == slow
        assert bytes(rig.heap.view[BYTES - 8192 :]) == os.pread(fd, 8192, 0)


def test_more_than_a_gigabyte_is_left_to_python(tmp_path: Path) -> None:
    """Its length would not fit the used element; the same memory may be named again and again."""
    with open(tmp_path / "large", "wb+") as file, open(tmp_path / "guest", "wb+") as guest:
        file.truncate(1 << 36)
        guest.truncate(3 << 30)
        memory = Mapping(guest.fileno(), 3 << 30)
        path = path_of(file.fileno(), 1 << 36, CACHED)
        rig = RingRig(path)
        there = 1 << 40
        with_regions(rig, path, [*two_regions(rig), (there, 3 << 30, memory.address, True, 0)])
        with rig:
            header, status = rig.heap.allocate(16), rig.heap.allocate(1)
            rig.heap.write(header, bytes(16))
            rig.driver.add([(header, 16)], [(there, 3 << 30), (there, 1 << 30), (there, 512), (status, 1)])
            rig.driver.kick()
            assert rig.wait_event()[0] == CHAIN
            assert rig.queue.requests == 0
        assert os.stat(guest.name).st_blocks == 0, "nothing was written"


def test_an_image_that_is_cut(image: Path, opened: list[int]) -> None:
    """The mapping is of no use any more; Python's reads find the end of the file."""
    with RingRig(image_path(image, MAPPED, opened)) as rig:
        os.truncate(image, 4096)
        rig.send(IN, 64, 512)
        rig.wait(1)
        assert len(rig.events) == 1


@MODES
def test_guest_memory_that_is_cut(image: Path, opened: list[int], mode: int) -> None:
    """The process lives; the queue does not, and publishes nothing."""
    with RingRig(image_path(image, mode, opened)) as rig:
        rig.send(IN, 0, 512)
        rig.wait(1)
        rig.send(IN, 0, 512)
        os.ftruncate(rig.fd, 0)
        os.eventfd_write(rig.kick, 1)
        assert rig.wait_event()[0] in {BROKEN_MEMORY, CHAIN}
        rig.stop()
        assert rig.queue.broken
        assert rig.queue.used_index <= 2


@pytest.mark.parametrize(
    "regions", [[], [(0, 0, 4096, True, 0)], [(0, 4096, 0, True, 0)], [(2**64 - 4096, 8192, 4096, True, 0)]]
)
def test_tables_that_can_not_be(regions: list[tuple[int, int, int, bool, int]]) -> None:
    with pytest.raises(ValueError):
        RegionTable(regions)


def test_paths_and_queues_that_can_not_be(fd: int) -> None:
    for mode in (-1, 3, MAPPED):
        with pytest.raises(ValueError):
            BlockPath(fd, 512, mode)
    for size in (3, 32769, 65536):
        with pytest.raises(ValueError):
            RingRig(None, size=size)
