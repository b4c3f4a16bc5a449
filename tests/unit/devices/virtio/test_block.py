"""The block device against virtio 1.3, 5.2; each test names the section."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from iolane.backends.lock import ImageLock
from iolane.backends.memory import MemoryBackend
from iolane.devices.registry import create
from iolane.devices.virtio.block import Block, BlockFunction
from iolane.devices.virtio.block.features import BlockFeature
from iolane.errors import IolaneError
from iolane.model.state import StateError
from iolane.model.virtio import Feature, RingRejection, Status
from iolane.model.virtio.features import mask
from iolane.testing.drivers.virtio_block import BlockError, VirtioBlockDriver
from iolane.testing.model_state import check_golden, golden_files, missing_golden
from iolane.testing.power_cut import FlushForgotten, PowerCut
from iolane.uapi.virtio import BlockRequest, BlockStatus

SECTORS = 2048
ALL = (1 << 64) - 1
GOLDEN = Path(__file__).with_name("golden")
WRITEBACK = 0x20


class Broken(MemoryBackend):
    """Every call fails with this error."""

    error = errno.EIO

    def _fail(self) -> None:
        raise OSError(self.error, os.strerror(self.error))

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._fail()

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._fail()

    def flush(self) -> None:
        self._fail()

    def discard(self, offset: int, length: int) -> None:
        self._fail()


@pytest.fixture
def driver() -> Iterator[VirtioBlockDriver]:
    backend = MemoryBackend(SECTORS * 512)
    with VirtioBlockDriver(BlockFunction(backend=backend, serial="serial-1", queues=2)) as driver:
        yield driver


def status_of(driver: VirtioBlockDriver, kind: int, *arguments: object, **more: object) -> BlockStatus:
    with pytest.raises(BlockError) as caught:
        driver.request(kind, *arguments, **more)  # type: ignore[arg-type]
    return caught.value.status


# Requests (5.2.6).


def test_what_is_written_is_read(driver: VirtioBlockDriver) -> None:
    data = os.urandom(4096)
    driver.write_sectors(3, data)
    assert driver.read_sectors(3, 8) == data
    assert driver.read_sectors(0, 3) == bytes(1536)
    driver.flush()
    assert driver.identify() == "serial-1"


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("cuts", [[1536], [512, 1024], [1, 510, 1, 1023, 1]])
def test_framing_means_nothing(driver: VirtioBlockDriver, cuts: list[int], indirect: bool) -> None:
    """2.7.4.1: the device MUST NOT make assumptions about the arrangement of descriptors."""
    data = os.urandom(1536)
    pieces, start = [], 0
    for length in cuts:
        pieces.append(data[start : start + length])
        start += length
    driver.request(BlockRequest.OUT, 5, pieces, indirect=indirect, queue=1)
    assert driver.request(BlockRequest.IN, 5, room=cuts, indirect=indirect) == data


def test_many_at_once(driver: VirtioBlockDriver) -> None:
    for number in range(50):
        driver.submit(BlockRequest.OUT, number, bytes([number]) * 512, indirect=True)
    assert len(driver.finish()) == 50
    assert driver.interrupts(1) == 1, "one interrupt for a batch"
    assert driver.read_sectors(0, 50) == b"".join(bytes([number]) * 512 for number in range(50))


@pytest.mark.parametrize(
    ("kind", "sector", "length"),
    [
        (BlockRequest.IN, SECTORS, 512),
        (BlockRequest.IN, SECTORS - 1, 1024),
        (BlockRequest.IN, 2**64 - 1, 512),
        (BlockRequest.IN, 0, 511),
        (BlockRequest.OUT, SECTORS, 512),
        (BlockRequest.OUT, SECTORS - 1, 1024),
        (BlockRequest.OUT, 2**63, 512),
        (BlockRequest.OUT, 0, 100),
        (BlockRequest.GET_ID, 0, 19),
    ],
)
def test_requests_outside_the_disk(driver: VirtioBlockDriver, kind: int, sector: int, length: int) -> None:
    """5.2.6.1: what a driver MUST NOT submit is an IOERR, and writes nothing."""
    data, room = (bytes(length), 0) if kind == BlockRequest.OUT else (b"", length)
    assert status_of(driver, kind, sector, data, room) is BlockStatus.IOERR
    assert driver.device.error_count == 0


def test_nothing_to_read_or_write(driver: VirtioBlockDriver) -> None:
    assert driver.request(BlockRequest.IN, SECTORS) == b""
    driver.request(BlockRequest.OUT, SECTORS)


@pytest.mark.parametrize("kind", [2, 3, 10, 14, 15, 26, 0x8000_0000, 0xFFFF_FFFF])
def test_unknown_requests(driver: VirtioBlockDriver, kind: int) -> None:
    assert status_of(driver, kind) is BlockStatus.UNSUPP


def test_chains_that_are_no_requests(driver: VirtioBlockDriver) -> None:
    driver.rings[0].send(b"short", 1)
    driver.rings[0].kick()
    assert driver.device.virtio.queues[0].rejection is RingRejection.MALFORMED_REQUEST
    assert Status.NEEDS_RESET in driver.status


# Discard and write zeroes (5.2.6.2).


def test_discard_and_write_zeroes(driver: VirtioBlockDriver) -> None:
    driver.write_sectors(0, b"\xff" * 512 * 64)
    driver.write_zeroes((1, 2, 0), (5, 1, 1))
    driver.discard((10, 4, 0))
    content = driver.read_sectors(0, 64)
    zeroes = [number for number in range(64) if content[512 * number : 512 * number + 512] == bytes(512)]
    assert zeroes == [1, 2, 5, 10, 11, 12, 13]
    assert driver.config(0x38, 1) == 1, "write_zeroes_may_unmap"


def test_flags_of_discard_and_write_zeroes(driver: VirtioBlockDriver) -> None:
    """UNSUPP for an unknown flag, and for unmap in a discard."""
    segment = (0).to_bytes(8, "little") + (1).to_bytes(4, "little")
    for kind, flags in ((BlockRequest.DISCARD, 1), (BlockRequest.DISCARD, 2), (BlockRequest.WRITE_ZEROES, 2)):
        data = segment + flags.to_bytes(4, "little")
        assert status_of(driver, kind, 0, data) is BlockStatus.UNSUPP


@pytest.mark.parametrize("kind", [BlockRequest.DISCARD, BlockRequest.WRITE_ZEROES])
def test_segments_outside_what_is_allowed(driver: VirtioBlockDriver, kind: int) -> None:
    def segment(sector: int, count: int) -> bytes:
        return sector.to_bytes(8, "little") + count.to_bytes(4, "little") + bytes(4)

    for data in (
        segment(SECTORS, 1),
        segment(SECTORS - 1, 2),
        segment(2**64 - 1, 1),
        segment(0, 2**32 - 1),
        segment(0, 1)[:15],
        segment(0, 1) * 17,
    ):
        assert status_of(driver, kind, 0, data) is BlockStatus.IOERR
    driver.request(kind, 0, b"")


# Configuration (5.2.4, 5.2.5).


def test_configuration(driver: VirtioBlockDriver) -> None:
    assert driver.config(0, 8) == SECTORS
    assert driver.config(0x0C, 4) == 254
    assert driver.config(0x14, 4) == 512
    assert (driver.config(0x18, 1), driver.config(0x1A, 2)) == (3, 8)
    assert driver.config(0x22, 2) == 2
    assert driver.config(0x21, 1) == 0
    offered = driver.offered()
    for feature in BlockFeature:
        wanted = feature not in (
            BlockFeature.SIZE_MAX,
            BlockFeature.GEOMETRY,
            BlockFeature.RO,
            BlockFeature.SECURE_ERASE,
            BlockFeature.ZONED,
        )
        assert bool(offered >> feature & 1) is wanted, feature


def test_a_disk_that_may_only_be_read() -> None:
    """5.2.6.2: IOERR for a write, and MUST NOT write any data."""
    backend = MemoryBackend(SECTORS * 512)
    with VirtioBlockDriver(BlockFunction(backend=backend, read_only=True)) as driver:
        offered = driver.offered()
        assert offered >> BlockFeature.RO & 1
        assert not offered & mask((BlockFeature.DISCARD, BlockFeature.WRITE_ZEROES))
        for kind in (BlockRequest.OUT, BlockRequest.DISCARD, BlockRequest.WRITE_ZEROES):
            assert status_of(driver, kind, 0, b"\xff" * 512) is BlockStatus.IOERR
        assert driver.read_sectors(0) == bytes(512)
    assert bytes(backend.content) == bytes(SECTORS * 512)


# What the host refuses.


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_errors_of_the_host(error: int) -> None:
    backend = Broken(SECTORS * 512)
    backend.error = error
    with VirtioBlockDriver(BlockFunction(backend=backend)) as driver:
        assert status_of(driver, BlockRequest.OUT, 0, bytes(512)) is BlockStatus.IOERR
        assert status_of(driver, BlockRequest.IN, 0, b"", 512) is BlockStatus.IOERR
        assert status_of(driver, BlockRequest.FLUSH) is BlockStatus.IOERR
        data = bytes(8) + b"\1" + bytes(7)
        assert status_of(driver, BlockRequest.DISCARD, 0, data) is BlockStatus.IOERR
        assert driver.device.describe()[f"errors_{errno.errorcode[error]}"] == 4
        assert driver.device.error_count == 0


# Caches (5.2.5, 5.2.6.2).


def cut_driver(backend: PowerCut, features: int = ALL) -> VirtioBlockDriver:
    return VirtioBlockDriver(BlockFunction(backend=backend), features=features)


@pytest.mark.parametrize(
    ("withheld", "writeback", "survives"),
    [
        ((), None, False),
        ((), 0, True),
        ((), 1, False),
        ((BlockFeature.CONFIG_WCE,), None, False),
        ((BlockFeature.FLUSH, BlockFeature.CONFIG_WCE), None, True),
        ((BlockFeature.FLUSH,), None, True),
    ],
)
def test_when_a_write_is_safe(withheld: Sequence[int], writeback: int | None, survives: bool) -> None:
    """5.2.6.2: stable at completion without FLUSH, or with writeback 0; else only after a flush."""
    disk = MemoryBackend(SECTORS * 512)
    backend = PowerCut(disk)
    with cut_driver(backend, ALL & ~mask(withheld)) as driver:
        if writeback is not None:
            driver.set_config(WRITEBACK, 1, writeback)
            assert driver.config(WRITEBACK, 1) == writeback
        driver.write_sectors(7, b"w" * 512)
        segment = (9).to_bytes(8, "little") + (1).to_bytes(4, "little") + bytes(4)
        disk.content[9 * 512 : 10 * 512] = b"z" * 512
        driver.request(BlockRequest.WRITE_ZEROES, 0, segment)
        backend.cut()
    assert (disk.content[7 * 512 : 8 * 512] == b"w" * 512) is survives
    assert (disk.content[9 * 512 : 10 * 512] == bytes(512)) is survives


def test_writeback_is_the_drivers_only_with_its_feature() -> None:
    with cut_driver(PowerCut(MemoryBackend(8192)), ALL & ~mask((BlockFeature.CONFIG_WCE,))) as driver:
        driver.set_config(WRITEBACK, 1, 0)
        assert driver.config(WRITEBACK, 1) == 1


def flushed_bytes_survive(backend: PowerCut, disk: MemoryBackend) -> bool:
    with cut_driver(backend) as driver:
        for sector in range(20):
            driver.write_sectors(sector, bytes([sector]) * 512)
            if sector == 9:
                driver.flush()
        backend.cut(seed=4)
    return bytes(disk.content[: 10 * 512]) == b"".join(bytes([sector]) * 512 for sector in range(10))


def test_flush_means_flush() -> None:
    """And the test can tell: a back end that only claims to flush fails it."""
    disk = MemoryBackend(SECTORS * 512)
    assert flushed_bytes_survive(PowerCut(disk), disk)
    disk = MemoryBackend(SECTORS * 512)
    assert not flushed_bytes_survive(FlushForgotten(disk), disk)


# Images.


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(SECTORS * 512))
    return path


def test_an_image_by_its_name(image: Path) -> None:
    device = create(f"block,image={image},serial=abc,queues=2,queue_size=64")
    assert isinstance(device, BlockFunction)
    with VirtioBlockDriver(device) as driver:
        driver.write_sectors(1, b"x" * 512)
        assert driver.identify() == "abc"
        assert image.read_bytes()[512:1024] == b"x" * 512
        assert driver.rings[1].size == 64


def test_the_image_is_locked_while_a_queue_runs(image: Path) -> None:
    """Not before: during a migration both sides have it open."""
    other = ImageLock(image, exclusive=True)
    with VirtioBlockDriver(BlockFunction(image), ready=False) as driver:
        other.acquire()
        other.release()
        driver.negotiate()
        driver.set_up_queues()
        driver.add_status(Status.DRIVER_OK)
        with pytest.raises(IolaneError, match="in use by another program"):
            other.acquire()
        driver.reset()
        other.acquire()
        assert other.held
        other.release()


def test_an_image_in_use(image: Path) -> None:
    other = ImageLock(image, exclusive=True)
    other.acquire()
    with pytest.raises(IolaneError, match="in use by another program"):
        BlockFunction(image)
    late = Block(image)  # a migration's destination: open, but not running
    late.queues[0].descriptors = late.queues[0].used = 0
    with late.lock, pytest.raises(IolaneError, match="in use"):
        late.queues[0].start()
    other.release()
    late.close()
    readers = [ImageLock(image, exclusive=False) for _ in range(2)]
    for reader in readers:
        reader.acquire()
    assert all(reader.held for reader in readers)
    for reader in readers:
        reader.release()


def test_an_image_grows(image: Path) -> None:
    with VirtioBlockDriver(BlockFunction(image)) as driver:
        before = driver.common(0x15, 1)
        os.truncate(image, 2 * SECTORS * 512)
        assert status_of(driver, BlockRequest.IN, SECTORS, b"", 512) is BlockStatus.IOERR
        driver.device.virtio.resize()
        assert driver.config(0, 8) == 2 * SECTORS
        assert driver.common(0x15, 1) != before
        assert driver.interrupts(0) == 1
        driver.write_sectors(2 * SECTORS - 1, b"e" * 512)
    assert image.read_bytes()[-512:] == b"e" * 512


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "needs an image"),
        ("image=/no/such/image", "there is no image"),
        ("image={image},queues=0", "1 to 256 queues"),
        ("image={image},queue_size=100", "power of two"),
        ("image={image},block_size=513", "512, 1024, 2048 or 4096"),
        ("image={image},serial=123456789012345678901", "up to 20 ASCII characters"),
        ("image={image},presentation=msi", "virtio functions have no MSI"),
    ],
)
def test_wrong_options(image: Path, options: str, message: str) -> None:
    with pytest.raises(IolaneError, match=message):
        create("block," + options.format(image=image) if options else "block")
    ImageLock(image, exclusive=True).acquire()


def test_sizes_that_are_no_whole_blocks(image: Path) -> None:
    os.truncate(image, 4096 * 3 + 512)
    with pytest.raises(IolaneError, match="truncate -s 16384"):
        BlockFunction(image, block_size=4096)


# State.


def golden_device() -> BlockFunction:
    return BlockFunction(backend=MemoryBackend(1 << 16), serial="golden", queues=2, name="golden")


def test_golden_states() -> None:
    assert missing_golden(GOLDEN, BlockFunction) == []
    for path in golden_files(GOLDEN, BlockFunction):
        device = check_golden(golden_device, path)
        assert device.virtio.queues[0].running
        assert device.virtio.writeback is False
        device.close()


def test_a_disk_of_another_size_is_refused(driver: VirtioBlockDriver) -> None:
    other = BlockFunction(backend=MemoryBackend(4096), queues=2)
    with pytest.raises(StateError, match="has 2048 sectors"):
        other.load(driver.device.save())
    other.close()


def test_requests_of_indirect_size(driver: VirtioBlockDriver) -> None:
    """seg_max + 2 descriptors are taken even by a queue of two."""
    with VirtioBlockDriver(BlockFunction(backend=MemoryBackend(1 << 20)), queue_size=2) as small:
        assert small.has(Feature.INDIRECT_DESC)
        data = os.urandom(254 * 512)
        pieces = [data[start : start + 512] for start in range(0, len(data), 512)]
        small.request(BlockRequest.OUT, 0, pieces, indirect=True)
        assert small.request(BlockRequest.IN, 0, room=[512] * 254, indirect=True) == data
