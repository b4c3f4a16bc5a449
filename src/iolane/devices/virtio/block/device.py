"""A disk for guests (virtio 1.3, 5.2), on the readable data plane."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from iolane.backends.block import BlockBackend
from iolane.backends.file import FileBackend
from iolane.backends.lock import ImageLock
from iolane.devices.virtio.block.config import (
    DISCARD_SECTORS,
    DISCARD_SEGMENTS,
    SECTOR,
    SEGMENTS,
    ZEROES_SECTORS,
    BlockConfig,
)
from iolane.devices.virtio.block.features import BlockFeature
from iolane.devices.virtio.block.path import block_path
from iolane.devices.virtio.block.request import Request, RequestError
from iolane.errors import IolaneError
from iolane.memory.ring import BlockPath
from iolane.model.dma import DmaFault, Pinned
from iolane.model.registers import Register8
from iolane.model.state import StateError
from iolane.model.virtio import Chain, VirtioDevice, VirtioState, Virtqueue
from iolane.model.virtio.features import mask
from iolane.uapi.virtio import (
    BLK_ID_BYTES,
    BLK_WRITE_ZEROES_FLAG_UNMAP,
    BlockRequest,
    BlockStatus,
    DeviceType,
)

ALWAYS = (
    BlockFeature.SEG_MAX,
    BlockFeature.BLK_SIZE,
    BlockFeature.FLUSH,
    BlockFeature.TOPOLOGY,
    BlockFeature.CONFIG_WCE,
    BlockFeature.MQ,
)
WRITABLE = (BlockFeature.DISCARD, BlockFeature.WRITE_ZEROES)
PHYSICAL_BLOCK = 4096
"""What files are best written in, the size of a page."""
MAX_QUEUES = 256


class BlockState(VirtioState):
    """The size of the disk, which the guest knows."""

    capacity: Annotated[int, msgspec.Meta(ge=0)] = 0
    writeback: bool = True


class Block(VirtioDevice):
    """The block device.

    Args:
        image: a raw image or block device of the host, which is locked while a queue runs.
        backend: a back end instead of an image; it is closed with the device.
        read_only: refuse writes.
        serial: what the guest reads as the disk's serial number, up to 20 characters.
        queues: number of request queues.
        queue_size: largest size of a queue, a power of two.
        block_size: the logical block size that the guest sees; by default the back end's.
        direct: compiled code reads and writes the image past the host's page cache.

    Raises:
        IolaneError: an argument can't be, or the image can't be opened.
    """

    device_type = DeviceType.BLOCK
    Config = BlockConfig
    chain_limit = SEGMENTS + 2
    config: BlockConfig
    State = BlockState
    state: BlockState

    def __init__(
        self,
        image: Path | None = None,
        *,
        backend: BlockBackend | None = None,
        read_only: bool = False,
        serial: str = "",
        queues: int = 1,
        queue_size: int = 256,
        block_size: int | None = None,
        direct: bool = False,
        name: str | None = None,
    ) -> None:
        _check_queues(queues, queue_size)
        self.serial = _checked_serial(serial)
        names = [f"requests{index}" for index in range(queues)]
        super().__init__([queue_size] * queues, queue_names=names, name=name)
        if (image is None) == (backend is None):
            raise IolaneError("a block device needs an image", remedy="add image=disk.raw")
        self.image = image
        self._lock = None if image is None else ImageLock(image, exclusive=not read_only)
        self.backend = backend or FileBackend(image or "", read_only=read_only, lock=False)
        self.read_only = read_only or self.backend.read_only
        self.block_size = block_size or self.backend.block_size
        self.writeback = True
        self.direct = direct
        self._path: BlockPath | None = None
        try:
            _check_block_size(self.block_size, self.backend)
        except IolaneError:
            self.backend.close()
            raise
        self.config.hook_write(BlockConfig.WRITEBACK, self._set_writeback)
        self.fill_config()

    # Features and configuration (5.2.3 to 5.2.5).

    def offered_features(self) -> int:
        return mask(ALWAYS) | (mask((BlockFeature.RO,)) if self.read_only else mask(WRITABLE))

    def on_features(self, features: int) -> None:
        """Without FLUSH every write is safe before it completes (5.2.5.2, 5.2.6.2)."""
        self._set_cache(self.negotiated(BlockFeature.FLUSH))

    def _set_writeback(self, value: Register8) -> None:
        if self.negotiated(BlockFeature.CONFIG_WCE):
            self._set_cache(bool(value & 1))
        self.config.WRITEBACK = int(self.writeback)

    def _set_cache(self, writeback: bool) -> None:
        self.writeback = writeback
        self.config.WRITEBACK = int(writeback)
        if self._path is not None:
            self._path.read_only = not self._compiled_writes

    @property
    def capacity(self) -> int:
        """Sectors of 512 bytes."""
        return self.backend.size // SECTOR

    def fill_config(self) -> None:
        config = self.config
        config.CAPACITY = self.capacity
        config.SEG_MAX = SEGMENTS
        config.BLK_SIZE = self.block_size
        config.PHYSICAL_BLOCK_EXP = max(0, (PHYSICAL_BLOCK // self.block_size).bit_length() - 1)
        config.MIN_IO_SIZE = max(1, PHYSICAL_BLOCK // self.block_size)
        config.WRITEBACK = int(self.writeback)
        config.NUM_QUEUES = len(self.queues)
        if not self.read_only:
            config.MAX_DISCARD_SECTORS = DISCARD_SECTORS
            config.MAX_DISCARD_SEG = config.MAX_WRITE_ZEROES_SEG = DISCARD_SEGMENTS
            config.DISCARD_SECTOR_ALIGNMENT = max(PHYSICAL_BLOCK, self.block_size) // SECTOR
            config.MAX_WRITE_ZEROES_SECTORS = ZEROES_SECTORS
            config.WRITE_ZEROES_MAY_UNMAP = int(self.backend.reads_zeroes_after_discard)

    def compiled_path(self, queue: Virtqueue) -> BlockPath | None:
        """Plain reads of an image, and writes while the cache is write-back; other back ends need Python."""
        if not isinstance(self.backend, FileBackend):
            return None
        if self._path is None:
            self._path = block_path(self.backend, direct=self.direct, writes=self._compiled_writes)
        return self._path

    @property
    def _compiled_writes(self) -> bool:
        return self.writeback and not self.read_only

    def resize(self) -> None:
        """The image has another size now: take it, and tell the guest (5.2.6.2)."""
        with self.quiesced():
            if self.image is not None:
                before = self.backend
                self.backend = FileBackend(self.image, read_only=self.read_only, lock=False)
                if self._path is not None:
                    path = block_path(self.backend, direct=self.direct, writes=self._compiled_writes)
                    self._path.become(path)
                before.close()
            self.config_changed()

    # The image's lock: held while a queue runs, since during a migration both sides have it open.

    def check_image(self) -> None:
        """Raise IolaneError now if the image is in use, rather than when the guest starts."""
        if self._lock is not None and not self._lock.held:
            self._lock.acquire()
            self._lock.release()

    @property
    def holds_image(self) -> bool:
        """Whether the image's lock is ours."""
        return self._lock is not None and self._lock.held

    def take_image(self) -> None:
        """Take the image's lock before a queue runs. Raises IolaneError when somebody else has it."""
        if self._lock is not None:
            self._lock.acquire()

    def on_queue_start(self, queue: Virtqueue) -> None:
        if self._lock is not None:
            self._lock.acquire()

    def on_queue_stop(self, queue: Virtqueue) -> None:
        if self._lock is not None and not any(other.ring is not None for other in self.queues):
            self._lock.release()

    # Requests (5.2.6).

    def handle(self, queue: Virtqueue, chain: Chain) -> None:
        """Start one request; what is wrong with it is its status."""
        request = Request(chain, self.dma)
        try:
            self._start(queue, request)
        except RequestError as error:
            self._finish(queue, request, error.status)

    def _start(self, queue: Virtqueue, request: Request) -> None:
        match request.kind:
            case BlockRequest.IN:
                self._read(queue, request)
            case BlockRequest.OUT:
                self._write(queue, request)
            case BlockRequest.FLUSH:
                self._run(queue, request, self.backend.flush)
            case BlockRequest.GET_ID:
                self._identify(queue, request)
            case BlockRequest.DISCARD:
                self._discard(queue, request)
            case BlockRequest.WRITE_ZEROES:
                self._write_zeroes(queue, request)
            case _:
                raise RequestError(BlockStatus.UNSUPP)

    def _read(self, queue: Virtqueue, request: Request) -> None:
        offset = request.extent(request.length, self.capacity)
        backend, pinned = self.backend, self.dma.pin(request.incoming, write=True)
        self._run(queue, request, lambda: backend.readv(offset, pinned.views), pinned)

    def _write(self, queue: Virtqueue, request: Request) -> None:
        self._check_writable()
        offset = request.extent(request.outgoing_length, self.capacity)
        backend, pinned = self.backend, self.dma.pin(request.outgoing, write=False)
        self._run(queue, request, self._safely(lambda: backend.writev(offset, pinned.views)), pinned)

    def _identify(self, queue: Virtqueue, request: Request) -> None:
        if request.length < BLK_ID_BYTES:
            raise RequestError(BlockStatus.IOERR)
        request.chain.write(self.dma, self.serial.encode().ljust(request.length, b"\0")[: request.length])
        self._finish(queue, request, BlockStatus.OK)

    def _discard(self, queue: Virtqueue, request: Request) -> None:
        """No flag is known for it (5.2.6.2)."""
        self._check_writable()
        segments = request.segments(self.dma, DISCARD_SEGMENTS)
        if any(flags for _, _, flags in segments):
            raise RequestError(BlockStatus.UNSUPP)
        extents = [self._extent(sector, count, DISCARD_SECTORS) for sector, count, _ in segments]
        backend = self.backend

        def work() -> None:
            for offset, length in extents:
                backend.discard(offset, length)

        self._run(queue, request, self._safely(work))

    def _write_zeroes(self, queue: Virtqueue, request: Request) -> None:
        self._check_writable()
        segments = request.segments(self.dma, DISCARD_SEGMENTS)
        if any(flags & ~BLK_WRITE_ZEROES_FLAG_UNMAP for _, _, flags in segments):
            raise RequestError(BlockStatus.UNSUPP)
        extents = [
            (*self._extent(sector, count, ZEROES_SECTORS), flags & BLK_WRITE_ZEROES_FLAG_UNMAP)
            for sector, count, flags in segments
        ]
        backend = self.backend

        def work() -> None:
            for offset, length, unmap in extents:
                if unmap and backend.reads_zeroes_after_discard:
                    backend.discard(offset, length)
                else:
                    backend.write_zeroes(offset, length)

        self._run(queue, request, self._safely(work))

    def _extent(self, sector: int, count: int, limit: int) -> tuple[int, int]:
        if count > limit or sector + count > self.capacity:
            raise RequestError(BlockStatus.IOERR)
        return sector * SECTOR, count * SECTOR

    def _check_writable(self) -> None:
        if self.read_only:
            raise RequestError(BlockStatus.IOERR)

    def _safely(self, work: Callable[[], None]) -> Callable[[], None]:
        """Work that is safe from loss of power when it ends, unless the cache is write-back."""
        if self.writeback:
            return work
        backend = self.backend

        def both() -> None:
            work()
            backend.flush()

        return both

    def _run(
        self, queue: Virtqueue, request: Request, work: Callable[[], None], pinned: Pinned | None = None
    ) -> None:
        """Do the work in a task; the request ends with it."""
        self.tasks.run(
            work,
            lambda _: self._ended(queue, request, pinned, None),
            lambda error: self._ended(queue, request, pinned, error),
        )

    def _ended(
        self, queue: Virtqueue, request: Request, pinned: Pinned | None, error: BaseException | None
    ) -> None:
        with queue.batch():
            if pinned is not None:
                self._release(pinned, failed=error is not None)
            if error is None:
                self._finish(queue, request, BlockStatus.OK)
                return
            self._count_error(error)
            self._finish(queue, request, BlockStatus.IOERR)

    def _release(self, pinned: Pinned, *, failed: bool) -> None:
        try:
            pinned.release()
        except DmaFault:
            if not failed:
                raise

    def _count_error(self, error: BaseException) -> None:
        code = error.errno if isinstance(error, OSError) else None
        self.counters.add(f"errors_{errno.errorcode.get(code or 0, type(error).__name__)}")

    def _finish(self, queue: Virtqueue, request: Request, status: BlockStatus) -> None:
        if status is not BlockStatus.OK:
            self.counters.add(f"requests_{status.name.lower()}")
        queue.push(request.chain, request.finish(self.dma, status))

    # State.

    def on_save(self) -> None:
        super().on_save()
        self.state.capacity = self.capacity
        self.state.writeback = self.writeback

    def on_load(self) -> None:
        if self.state.capacity != self.capacity:
            raise StateError(
                f"the saved state's disk has {self.state.capacity} sectors, the image of {self.name} "
                f"{self.capacity}",
                remedy="name the same image",
            )
        self._set_cache(self.state.writeback)
        super().on_load()

    def statistics(self) -> dict[str, int | float | str]:
        shown: dict[str, int | float | str] = {"capacity": self.capacity * SECTOR}
        return {**shown, "writeback": int(self.writeback), **super().statistics()}

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()
        self.backend.close()


def _check_queues(queues: int, queue_size: int) -> None:
    if not 1 <= queues <= MAX_QUEUES:
        raise IolaneError(f"a block device has 1 to {MAX_QUEUES} queues, not {queues}")
    if not 2 <= queue_size <= 32768 or queue_size & (queue_size - 1):
        raise IolaneError(f"queue_size is a power of two from 2 to 32768, not {queue_size}")


def _checked_serial(serial: str) -> str:
    if len(serial) > BLK_ID_BYTES or not serial.isascii():
        raise IolaneError(f"a serial has up to {BLK_ID_BYTES} ASCII characters, {serial!r} has not")
    return serial


def _check_block_size(size: int, backend: BlockBackend) -> None:
    if not SECTOR <= size <= PHYSICAL_BLOCK or size & (size - 1):
        raise IolaneError(f"blocks have 512, 1024, 2048 or 4096 bytes, not {size}")
    if size < backend.block_size:
        raise IolaneError(
            f"the image has blocks of {backend.block_size} bytes",
            remedy=f"add block_size={backend.block_size}",
        )
    if backend.size % size:
        whole = -(-backend.size // size) * size
        raise IolaneError(
            f"the image has {backend.size} bytes: not a whole number of {size}-byte blocks",
            remedy=f"make it longer: truncate -s {whole} IMAGE",
        )
