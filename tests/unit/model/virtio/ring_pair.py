"""A split virtqueue with both of its sides, in one piece of memory."""

from __future__ import annotations

from iolane.model.dma import DmaSpace
from iolane.model.virtio import SplitRing
from iolane.testing.drivers.virtio import DriverMemory, DriverRing

START = 0x1_0000
SIZE = 1 << 16


class RingPair:
    """`driver` and `device` of the same queue; kicks are counted, not followed."""

    def __init__(self, size: int = 8, *, event_idx: bool = False, indirect: bool = True) -> None:
        self.memory = memoryview(bytearray(SIZE))
        self.dma = DmaSpace()
        self.dma.map(START, SIZE, buffer=self.memory)
        self.heap = DriverMemory(self.memory, START)
        self.kicked = 0
        self.driver = DriverRing(self.heap, size, self._kick, event_idx=event_idx, indirect=indirect)
        self.device = self.attach()

    def _kick(self) -> None:
        self.kicked += 1

    def attach(self, last_available: int = 0, used_index: int | None = None) -> SplitRing:
        """The device's side, again."""
        driver = self.driver
        return SplitRing(
            self.dma,
            driver.size,
            driver.descriptors,
            driver.available,
            driver.used,
            event_idx=driver.event_idx,
            indirect=driver.indirect,
            last_available=last_available,
            used_index=used_index,
        )

    def u16(self, address: int) -> int:
        """What both see at an address."""
        return int.from_bytes(self.heap.read(address, 2), "little")

    def put(self, address: int, value: int, size: int = 2) -> None:
        """Write what a driver would not."""
        self.heap.write(address, value.to_bytes(size, "little"))
