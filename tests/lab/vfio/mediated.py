"""A function behind a mediator, driven as a guest does: over vfio-user, partly mapped straight through."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

from iolane.carriers.vfio.live_registers import LiveRegion, live_registers
from iolane.carriers.vfio.region import VfioRegion
from iolane.carriers.vfio_user import VfioUserClient
from iolane.memory.mapping import Mapping
from iolane.model.pci import PcieId
from iolane.model.registers import RegisterMap
from iolane.uapi.vfio import RegionFlags

M = TypeVar("M", bound=RegisterMap)


class ClientMemory:
    """Memory that the function reaches, as a guest's RAM is."""

    def __init__(self, client: VfioUserClient, iova: int, size: int) -> None:
        self._client = client
        self._range = iova, size
        fd = os.memfd_create("guest")
        os.ftruncate(fd, size)
        self._mapping = Mapping(fd, size)
        self.view = memoryview(self._mapping).cast("B")
        client.dma_map(iova, size, fd=fd)
        os.close(fd)

    def close(self) -> None:
        self._client.dma_unmap(*self._range)
        self.view.release()
        self._mapping.close()


class ClientFunction:
    """Looks like a `VfioFunction` to a driver, and is a vfio-user client."""

    def __init__(self, client: VfioUserClient, address: PcieId) -> None:
        self.address = address
        self._client = client
        self._regions: dict[int, tuple[VfioRegion, int]] = {}
        self._live: list[LiveRegion] = []

    def _region(self, index: int) -> tuple[VfioRegion, int]:
        if index not in self._regions:
            info = self._client.region_info(index)
            flags = RegionFlags(int(info.flags))
            region = VfioRegion(index, info.size, info.offset, flags, info.areas, False)
            self._regions[index] = region, info.fd
        return self._regions[index]

    def region(self, index: int) -> VfioRegion:
        return self._region(index)[0]

    def read(self, index: int, offset: int, length: int) -> bytes:
        return self._client.read_bytes(index, offset, length)

    def write(self, index: int, offset: int, data: bytes) -> None:
        self._client.write_bytes(index, offset, data)

    def map(self, index: int, offset: int, size: int) -> Mapping:
        region, fd = self._region(index)
        return Mapping(fd, size, region.offset + offset)

    def registers(self, index: int, registers: type[M]) -> M:
        live = LiveRegion(self, index)
        self._live.append(live)
        return live_registers(registers, live, 0)

    def set_command(self) -> None:
        self._client.config_write(4, 2, 0x6)

    def reset(self) -> None:
        self._client.reset()

    def memory(self, iova: int, size: int) -> ClientMemory:
        return ClientMemory(self._client, iova, size)

    def set_irqs(self, index: int, start: int, eventfds: Sequence[int | None]) -> None:
        self._client.set_irqs(index, start=start, fds=[fd for fd in eventfds if fd is not None])

    def disable_irqs(self, index: int) -> None:
        self._client.set_irqs(index, count=0)

    def unmask_irqs(self, index: int, start: int = 0, count: int = 1) -> None:
        raise NotImplementedError

    def close(self) -> None:
        for live in self._live:
            live.close()
        for _, fd in self._regions.values():
            if fd >= 0:
                os.close(fd)
