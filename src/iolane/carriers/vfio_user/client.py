"""The client's side of vfio-user: what a hypervisor does, for tests and for engines of our own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from iolane.carriers.descriptors import close_all
from iolane.carriers.vfio_user.channel import Channel, VfioUserError
from iolane.carriers.vfio_user.protocol import (
    CAPABILITY_HEADER,
    CAPABILITY_SPARSE_MMAP,
    DEVICE_INFO,
    DMA_MAP,
    DMA_UNMAP,
    FEATURE,
    FEATURE_STATE,
    IRQ_INFO,
    IRQ_SET,
    LOGGING_CONTROL,
    LOGGING_RANGE,
    LOGGING_REPORT,
    MAX_DATA_XFER,
    MAX_MSG_FDS,
    MIGRATION_DATA,
    PAGE_SIZE,
    REGION_ACCESS,
    REGION_INFO,
    REGION_IO_FDS,
    SPARSE_AREA,
    SPARSE_MMAP,
    WRITE_MULTI,
    WRITE_ONE,
    Command,
    DeviceFlag,
    Feature,
    FeatureFlag,
    IrqAction,
    IrqData,
    IrqFlag,
    MapFlag,
    MigrationFlag,
    MigrationState,
    RegionFlag,
    UnmapFlag,
)
from iolane.carriers.vfio_user.version import Capabilities, TwinSocket, encode, parse, peer_of
from iolane.model.interrupts import InterruptIndex
from iolane.model.region import Area, RegionIndex

DEFAULT_PROPOSAL = Capabilities(
    max_msg_fds=MAX_MSG_FDS,
    max_data_xfer_size=MAX_DATA_XFER,
    max_dma_maps=65535,
    pgsizes=PAGE_SIZE,
    write_multiple=True,
)
READ_WRITE = MapFlag.READ | MapFlag.WRITE


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What a device is."""

    flags: DeviceFlag
    region_count: int
    irq_count: int


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """What a region is. `fd` is the caller's, -1 without; `areas` are the parts that may be mapped."""

    index: int
    flags: RegionFlag
    size: int
    offset: int
    areas: tuple[Area, ...]
    fd: int


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """What an interrupt type is."""

    index: int
    flags: IrqFlag
    count: int


class VfioUserClient(Channel):
    """Asks a server things, one at a time, from one thread. Error replies raise VfioUserError.

    Args:
        path: the server's socket.
        timeout: seconds for a reply; QEMU's default is 5.
    """

    def negotiate(
        self,
        capabilities: Capabilities | None = DEFAULT_PROPOSAL,
        *,
        minor: int = 1,
        twin_socket: bool = False,
    ) -> Capabilities:
        """VERSION: what the server agreed to."""
        if twin_socket and capabilities is not None:
            capabilities = Capabilities(
                max_msg_fds=capabilities.max_msg_fds or MAX_MSG_FDS, twin_socket=TwinSocket(supported=True)
            )
        message = self.exchange(Command.VERSION, encode(minor, capabilities))
        _, answered, agreed = parse(message.payload)
        self.peer = peer_of(answered, agreed)
        twin = agreed.twin_socket
        if twin is not None and twin.supported:
            if twin.fd_index is None or not 0 <= twin.fd_index < len(message.fds):
                close_all(message.fds)
                raise VfioUserError("VERSION: a twin socket without its descriptor")
            self.use_twin(message.fds[twin.fd_index])
        else:
            close_all(message.fds)
        return agreed

    def device_info(self) -> DeviceInfo:
        """DEVICE_GET_INFO."""
        payload = self.request(Command.DEVICE_GET_INFO, DEVICE_INFO.pack(DEVICE_INFO.size, 0, 0, 0))
        _, flags, regions, irqs = self.unpack(DEVICE_INFO, payload, Command.DEVICE_GET_INFO)
        return DeviceInfo(DeviceFlag(flags), regions, irqs)

    def region_info(self, index: int) -> RegionInfo:
        """DEVICE_GET_REGION_INFO; asks again where capabilities need room, as QEMU does."""
        command = Command.DEVICE_GET_REGION_INFO
        argsz = REGION_INFO.size
        while True:
            message = self.exchange(command, REGION_INFO.pack(argsz, 0, index, 0, 0, 0))
            needed, flags, _, cap_offset, size, offset = self.unpack(REGION_INFO, message.payload, command)
            if argsz >= needed or needed > MAX_DATA_XFER:
                break
            close_all(message.fds)
            argsz = needed
        flags = RegionFlag(flags)
        fd = message.fds[0] if message.fds else -1
        close_all(message.fds[1:])
        areas: tuple[Area, ...] = ()
        if flags & RegionFlag.CAPS:
            areas = _sparse_areas(message.payload, cap_offset)
        elif flags & RegionFlag.MMAP:
            areas = (Area(0, size),)
        return RegionInfo(index, flags, size, offset, areas, fd)

    def region_io_fds(self, index: int, argsz: int = 4096) -> int:
        """DEVICE_GET_REGION_IO_FDS: how many sub-regions there are."""
        command = Command.DEVICE_GET_REGION_IO_FDS
        payload = self.request(command, REGION_IO_FDS.pack(argsz, 0, index, 0))
        return int(self.unpack(REGION_IO_FDS, payload, command)[3])

    def irq_info(self, index: int) -> IrqInfo:
        """DEVICE_GET_IRQ_INFO."""
        payload = self.request(Command.DEVICE_GET_IRQ_INFO, IRQ_INFO.pack(IRQ_INFO.size, 0, index, 0))
        _, flags, _, count = self.unpack(IRQ_INFO, payload, Command.DEVICE_GET_IRQ_INFO)
        return IrqInfo(index, IrqFlag(flags), count)

    def set_irqs(
        self,
        index: int,
        *,
        action: IrqAction = IrqAction.TRIGGER,
        start: int = 0,
        count: int | None = None,
        fds: Sequence[int] | None = None,
        booleans: bytes | None = None,
    ) -> None:
        """DEVICE_SET_IRQS: with `fds` (an empty list disconnects), with `booleans`, or with neither.

        Descriptors stay the caller's. More than the server takes in one message are sent in chunks.
        """
        if fds is None:
            data = IrqData.NONE if booleans is None else IrqData.BOOL
            number = count if count is not None else len(booleans or b"")
            payload = IRQ_SET.pack(IRQ_SET.size + len(booleans or b""), data | action, index, start, number)
            self.request(Command.DEVICE_SET_IRQS, payload + (booleans or b""))
            return
        flags = IrqData.EVENTFD | action
        if not fds:
            self.request(
                Command.DEVICE_SET_IRQS,
                IRQ_SET.pack(IRQ_SET.size, flags, index, start, 1 if count is None else count),
            )
        chunk = max(self.peer.max_msg_fds, 1)
        for first in range(0, len(fds), chunk):
            part = fds[first : first + chunk]
            payload = IRQ_SET.pack(IRQ_SET.size, flags, index, start + first, len(part))
            self.request(Command.DEVICE_SET_IRQS, payload, fds=part)

    def connect_irqs(self, index: InterruptIndex, count: int, *, start: int = 0) -> list[int]:
        """Make `count` eventfds, connect them, and return them."""
        fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
        self.set_irqs(index, start=start, fds=fds)
        return fds

    def read_bytes(self, region: int, offset: int, count: int) -> bytes:
        """REGION_READ of any length up to max_data_xfer_size."""
        payload = self.request(Command.REGION_READ, REGION_ACCESS.pack(offset, region, count))
        if len(payload) != REGION_ACCESS.size + count:
            raise VfioUserError(f"REGION_READ: {len(payload)} bytes for {count}", command=Command.REGION_READ)
        return payload[REGION_ACCESS.size :]

    def read(self, region: int, offset: int, size: int) -> int:
        """Read a little-endian value of `size` bytes."""
        return int.from_bytes(self.read_bytes(region, offset, size), "little")

    def write_bytes(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        """REGION_WRITE; a posted one gets no reply, not even where it is refused."""
        payload = REGION_ACCESS.pack(offset, region, len(data)) + data
        if posted:
            self.send(Command.REGION_WRITE, payload, no_reply=True)
        else:
            self.request(Command.REGION_WRITE, payload)

    def write(self, region: int, offset: int, size: int, value: int, *, posted: bool = False) -> None:
        """Write a little-endian value of `size` bytes."""
        self.write_bytes(region, offset, value.to_bytes(size, "little"), posted=posted)

    def write_multi(self, writes: Sequence[tuple[int, int, bytes]], *, posted: bool = False) -> None:
        """REGION_WRITE_MULTI of (region, offset, at most 8 bytes)."""
        payload = WRITE_MULTI.pack(len(writes)) + b"".join(
            WRITE_ONE.pack(offset, region, len(data), data) for region, offset, data in writes
        )
        if posted:
            self.send(Command.REGION_WRITE_MULTI, payload, no_reply=True)
            return
        (done,) = self.unpack(
            WRITE_MULTI, self.request(Command.REGION_WRITE_MULTI, payload), Command.REGION_WRITE_MULTI
        )
        if done != len(writes):
            raise VfioUserError(f"REGION_WRITE_MULTI: {done} of {len(writes)} writes done")

    def config_read(self, offset: int, size: int) -> int:
        """Read config space."""
        return self.read(RegionIndex.CONFIG, offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write config space."""
        self.write(RegionIndex.CONFIG, offset, size, value)

    def dma_map(
        self,
        address: int,
        size: int,
        *,
        fd: int | None = None,
        offset: int = 0,
        flags: int = READ_WRITE,
        memory: bytearray | memoryview | None = None,
    ) -> None:
        """DMA_MAP with a descriptor (it stays the caller's), or with `memory` that the server reaches by
        messages.
        """
        payload = DMA_MAP.pack(DMA_MAP.size, flags, offset, address, size)
        self.request(Command.DMA_MAP, payload, fds=() if fd is None else (fd,))
        if memory is not None:
            self.memory[address] = memoryview(memory).cast("B")[:size]

    def dma_unmap(self, address: int, size: int) -> None:
        """DMA_UNMAP of every map inside the range."""
        self._unmap(0, address, size)
        for start in [start for start in self.memory if address <= start < address + size]:
            del self.memory[start]

    def dma_unmap_all(self) -> None:
        """DMA_UNMAP of everything."""
        self._unmap(UnmapFlag.ALL, 0, 0)
        self.memory.clear()

    def _unmap(self, flags: int, address: int, size: int) -> None:
        payload = DMA_UNMAP.pack(DMA_UNMAP.size, flags, address, size)
        if self.request(Command.DMA_UNMAP, payload)[: DMA_UNMAP.size] != payload:
            raise VfioUserError("DMA_UNMAP: the reply names another range", command=Command.DMA_UNMAP)

    def reset(self) -> None:
        """DEVICE_RESET."""
        self.request(Command.DEVICE_RESET)

    # Features and migration.

    def device_feature(self, feature: int, operation: int, data: bytes = b"", *, room: int = 0) -> bytes:
        """DEVICE_FEATURE: the data of the reply; `room` is what the reply may have beyond the request."""
        payload = FEATURE.pack(FEATURE.size + len(data) + room, feature | operation) + data
        answer = self.request(Command.DEVICE_FEATURE, payload)
        self.unpack(FEATURE, answer, Command.DEVICE_FEATURE)
        return answer[FEATURE.size :]

    def probe_feature(self, feature: Feature, operation: int = 0) -> bool:
        """Whether the server has the feature, with the operations named."""
        try:
            self.device_feature(feature, FeatureFlag.PROBE | operation)
        except VfioUserError as error:
            if not error.errno:
                raise
            return False
        return True

    def migration_flags(self) -> MigrationFlag:
        """The migration states that the server has beside RUNNING and ERROR."""
        data = self.device_feature(Feature.MIGRATION, FeatureFlag.GET, room=8)
        return MigrationFlag(int.from_bytes(data[:8], "little"))

    def migration_state(self) -> MigrationState:
        """The device's migration state."""
        data = self.device_feature(Feature.MIG_DEVICE_STATE, FeatureFlag.GET, room=FEATURE_STATE.size)
        return MigrationState(self.unpack(FEATURE_STATE, data, Command.DEVICE_FEATURE)[0])

    def set_migration_state(self, state: MigrationState) -> None:
        """Take the device to another migration state."""
        self.device_feature(Feature.MIG_DEVICE_STATE, FeatureFlag.SET, FEATURE_STATE.pack(state, 0))

    def migration_read(self, chunk: int = 1 << 16) -> bytes:
        """The rest of the state's stream."""
        stream = bytearray()
        while True:
            request = MIGRATION_DATA.pack(MIGRATION_DATA.size + chunk, chunk)
            payload = self.request(Command.MIG_DATA_READ, request)
            _, size = self.unpack(MIGRATION_DATA, payload, Command.MIG_DATA_READ)
            stream += payload[MIGRATION_DATA.size : MIGRATION_DATA.size + size]
            if size < chunk:
                return bytes(stream)

    def migration_write(self, stream: bytes, chunk: int = 1 << 16) -> None:
        """Send a state's stream."""
        for start in range(0, len(stream), chunk):
            part = stream[start : start + chunk]
            header = MIGRATION_DATA.pack(MIGRATION_DATA.size + len(part), len(part))
            self.request(Command.MIG_DATA_WRITE, header + part)

    def start_dirty_log(self, ranges: Sequence[tuple[int, int]] = (), page_size: int = PAGE_SIZE) -> None:
        """DMA_LOGGING_START; no ranges means all memory."""
        data = LOGGING_CONTROL.pack(page_size, len(ranges), 0)
        data += b"".join(LOGGING_RANGE.pack(iova, length) for iova, length in ranges)
        self.device_feature(Feature.DMA_LOGGING_START, FeatureFlag.SET, data)

    def stop_dirty_log(self) -> None:
        """DMA_LOGGING_STOP."""
        self.device_feature(Feature.DMA_LOGGING_STOP, FeatureFlag.SET)

    def dirty_pages(self, iova: int, length: int, page_size: int = PAGE_SIZE) -> bytes:
        """DMA_LOGGING_REPORT: the bitmap."""
        room = -(-length // (64 * page_size)) * 8
        data = LOGGING_REPORT.pack(iova, length, page_size)
        return self.device_feature(Feature.DMA_LOGGING_REPORT, FeatureFlag.GET, data, room=room)[
            LOGGING_REPORT.size :
        ]


def _sparse_areas(payload: bytes, offset: int) -> tuple[Area, ...]:
    """The areas of the sparse mmap capability in a region info reply."""
    seen = 0
    while REGION_INFO.size <= offset <= len(payload) - CAPABILITY_HEADER.size and seen < 16:
        kind, _, following = CAPABILITY_HEADER.unpack_from(payload, offset)
        if kind == CAPABILITY_SPARSE_MMAP:
            start = offset + CAPABILITY_HEADER.size + SPARSE_MMAP.size
            if start > len(payload):
                break
            count, _ = SPARSE_MMAP.unpack_from(payload, start - SPARSE_MMAP.size)
            listed = payload[start : start + count * SPARSE_AREA.size]
            if len(listed) != count * SPARSE_AREA.size:
                break
            return tuple(Area(*area) for area in SPARSE_AREA.iter_unpack(listed))
        offset, seen = following, seen + 1
    raise VfioUserError("GET_REGION_INFO: a broken list of capabilities")
