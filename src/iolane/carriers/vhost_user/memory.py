"""The guest's memory, as the front end shares it ("Memory access").

A region has two addresses: rings are named by the front end's own (user) addresses, buffers by the
guest's. Neither starts at 0 everywhere: in DPDK's virtio-user both are the address in its process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from iolane.carriers.vhost_user.protocol import (
    BASELINE_REGIONS,
    MAX_MEMORY_SLOTS,
    MEMORY_HEADER,
    MEMORY_REGION,
    SINGLE_REGION,
)
from iolane.carriers.vhost_user.rejection import RefusedError, Rejection
from iolane.carriers.vhost_user.wire import Message
from iolane.errors import IolaneError
from iolane.memory.mapping import MappingError
from iolane.model.dma import DmaSpace, MapLimitError, MapOverlapError

SPACE = 1 << 64


class Region(NamedTuple):
    """A piece of guest memory in a file."""

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int

    def same_place(self, other: Region) -> bool:
        """ "The memory region to be removed is identified by its guest address, user address and size."""
        return self[:3] == other[:3]


class MemoryTable:
    """The regions, and with them the DMA space of the device. Called under the device's lock, while no ring
    runs.
    """

    def __init__(self, dma: DmaSpace) -> None:
        self._dma = dma
        self.regions: list[Region] = []

    def clear(self) -> None:
        """No memory any more."""
        self.regions.clear()
        self._dma.unmap_all()

    def replace(self, message: Message) -> None:
        """SET_MEM_TABLE. What was there goes, even where the new table turns out to be wrong."""
        regions = parse_table(message)
        self.clear()
        self._dma.page_size = 1
        try:
            for region, fd in zip(regions, message.fds, strict=True):
                self._map(region, fd)
        except RefusedError:
            self.clear()
            raise

    def add(self, message: Message) -> None:
        """ADD_MEM_REG."""
        region = parse_single(message)
        if len(self.regions) >= MAX_MEMORY_SLOTS:
            raise RefusedError(Rejection.REGION_COUNT, f"{MAX_MEMORY_SLOTS} slots are taken")
        self._dma.page_size = 1
        self._map(region, message.fds[0])

    def remove(self, message: Message) -> None:
        """REM_MEM_REG. A descriptor that comes with it, as QEMU before 6.0 sends one, is not used."""
        wanted = parse_single(message)
        for region in self.regions:
            if region.same_place(wanted):
                self.regions.remove(region)
                self._dma.unmap(region.guest_address, region.size)
                return
        raise RefusedError(Rejection.REGION_UNKNOWN, f"{wanted.size:#x} bytes at {wanted.guest_address:#x}")

    def _map(self, region: Region, fd: int) -> None:
        _check(region)
        try:
            self._dma.map(region.guest_address, region.size, fd=fd, offset=region.mmap_offset)
        except MapOverlapError as error:
            raise RefusedError(Rejection.REGION_OVERLAP, str(error)) from None
        except MapLimitError as error:
            raise RefusedError(Rejection.REGION_COUNT, str(error)) from None
        except (MappingError, OSError, OverflowError) as error:
            raise RefusedError(Rejection.REGION_FILE, str(error)) from None
        except IolaneError as error:
            raise RefusedError(Rejection.REGION_RANGE, str(error)) from None
        self.regions.append(region)

    def translate(self, user_address: int, length: int) -> int | None:
        """The guest address of what lies at a user address, None if no region holds all of it."""
        for region in self.regions:
            offset = user_address - region.user_address
            if offset >= 0 and offset + length <= region.size:
                return region.guest_address + offset
        return None


def parse_table(message: Message) -> Sequence[Region]:
    """The regions of SET_MEM_TABLE; there is a descriptor for each."""
    (count, _) = message.unpack(MEMORY_HEADER, exact=False)
    if not 0 < count <= BASELINE_REGIONS:
        raise RefusedError(Rejection.REGION_COUNT, f"{count} in a message")
    body = message.payload[MEMORY_HEADER.size :]
    if len(body) < count * MEMORY_REGION.size:
        raise RefusedError(Rejection.PAYLOAD_SIZE, f"{len(body)} bytes for {count} regions")
    if len(message.fds) != count:
        raise RefusedError(Rejection.FDS_COUNT, f"{len(message.fds)} for {count} regions")
    layout = body[: count * MEMORY_REGION.size]
    return [Region(*fields) for fields in MEMORY_REGION.iter_unpack(layout)]


def parse_single(message: Message) -> Region:
    """The region of ADD_MEM_REG and REM_MEM_REG."""
    _, *fields = message.unpack(SINGLE_REGION, exact=False)
    return Region(*fields)


def _check(region: Region) -> None:
    ends = (region.guest_address, region.user_address, region.mmap_offset)
    if not region.size or max(ends) + region.size > SPACE:
        raise RefusedError(
            Rejection.REGION_RANGE, f"{region.size:#x} bytes at {', '.join(f'{at:#x}' for at in ends)}"
        )
