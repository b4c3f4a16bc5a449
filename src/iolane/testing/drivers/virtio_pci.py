"""A driver of virtio functions (virtio 1.3, 3.1 and 4.1), over the device itself."""

from __future__ import annotations

from typing import TypeVar

from iolane.model.interrupts import InterruptMode
from iolane.model.pci import CapabilityId, Type0Header
from iolane.model.virtio.features import Feature, mask
from iolane.model.virtio.pci import VirtioPci
from iolane.model.virtio.pci.registers import CommonRegisters
from iolane.model.virtio.status import Status
from iolane.testing.drivers.function import MEMORY_START, FunctionDriver
from iolane.testing.drivers.virtio import DriverMemory, DriverRing
from iolane.uapi.virtio import NO_VECTOR, PciStructure

F = TypeVar("F", bound=VirtioPci)
UNWANTED = mask((Feature.RING_PACKED, Feature.NOTIFICATION_DATA))


class VirtioPciDriver(FunctionDriver[F]):
    """Finds the structures by their capabilities, negotiates, sets queues up, kicks by their addresses.

    Args:
        features: mask of features to accept of those that are offered; by default all.
        queue_size: by default the largest.
        ready: go on up to DRIVER_OK.
    """

    def __init__(
        self,
        device: F,
        *,
        interrupts: InterruptMode | None = None,
        memory: int = 1 << 20,
        features: int = (1 << 64) - 1,
        queue_size: int | None = None,
        ready: bool = True,
    ) -> None:
        super().__init__(device, interrupts=interrupts, memory=memory)
        self.heap = DriverMemory(self.memory, MEMORY_START)
        self.structures: dict[PciStructure, tuple[int, int]] = {}
        self.multiplier = 0
        self.features = 0
        self.rings: list[DriverRing] = []
        self._find_structures()
        if ready:
            self.negotiate(features)
            self.set_up_queues(queue_size)
            self.add_status(Status.DRIVER_OK)

    def _find_structures(self) -> None:
        config = self.device.config
        at = config.read(Type0Header.CAPABILITIES_POINTER.offset, 1)
        while at:
            if config.read(at, 1) == CapabilityId.VNDR:
                kind, bar = PciStructure(config.read(at + 3, 1)), config.read(at + 4, 1)
                self.structures[kind] = (bar, config.read(at + 8, 4))
                if kind is PciStructure.NOTIFY_CFG:
                    self.multiplier = config.read(at + 16, 4)
            at = config.read(at + 1, 1)

    # Structures.

    def common(self, offset: int, size: int) -> int:
        """Read the common configuration."""
        bar, base = self.structures[PciStructure.COMMON_CFG]
        return self.read(base + offset, size, bar=bar)

    def set_common(self, offset: int, size: int, value: int) -> None:
        """Write the common configuration."""
        bar, base = self.structures[PciStructure.COMMON_CFG]
        self.write(base + offset, size, value, bar=bar)

    def config(self, offset: int, size: int) -> int:
        """Read the device's configuration, 64-bit fields in halves (4.1.3.1)."""
        bar, base = self.structures[PciStructure.DEVICE_CFG]
        if size == 8:
            return self.config(offset, 4) | self.config(offset + 4, 4) << 32
        return self.read(base + offset, size, bar=bar)

    def set_config(self, offset: int, size: int, value: int) -> None:
        """Write the device's configuration."""
        bar, base = self.structures[PciStructure.DEVICE_CFG]
        self.write(base + offset, size, value, bar=bar)

    def isr(self) -> int:
        """Read (and so clear) the ISR status."""
        bar, base = self.structures[PciStructure.ISR_CFG]
        return self.read(base, 1, bar=bar)

    def notify(self, queue: int) -> None:
        """Kick a queue."""
        bar, base = self.structures[PciStructure.NOTIFY_CFG]
        self.set_common(CommonRegisters.QUEUE_SELECT.offset, 2, queue)
        place = self.common(CommonRegisters.QUEUE_NOTIFY_OFF.offset, 2) * self.multiplier
        self.write(base + place, 2, queue, bar=bar)

    # Initialization (3.1.1).

    @property
    def status(self) -> Status:
        """The device status."""
        return Status(self.common(CommonRegisters.DEVICE_STATUS.offset, 1))

    def add_status(self, bits: Status) -> None:
        """Set bits of the device status."""
        self.set_common(CommonRegisters.DEVICE_STATUS.offset, 1, int(self.status | bits))

    def reset(self) -> None:
        """Reset by status, and forget the rings."""
        self.set_common(CommonRegisters.DEVICE_STATUS.offset, 1, 0)
        assert self.status == 0
        self.rings.clear()
        self.heap = DriverMemory(self.memory, MEMORY_START)

    def offered(self) -> int:
        """The features that the device offers."""
        found = 0
        for select in range(4):
            self.set_common(CommonRegisters.DEVICE_FEATURE_SELECT.offset, 4, select)
            found |= self.common(CommonRegisters.DEVICE_FEATURE.offset, 4) << 32 * select
        return found

    def negotiate(self, wanted: int = (1 << 64) - 1) -> None:
        """Up to FEATURES_OK."""
        self.add_status(Status.ACKNOWLEDGE)
        self.add_status(Status.DRIVER)
        self.features = self.offered() & wanted & ~UNWANTED
        self.write_features(self.features)
        self.add_status(Status.FEATURES_OK)
        assert Status.FEATURES_OK in self.status

    def write_features(self, features: int) -> None:
        """Accept features."""
        for select in range(2):
            self.set_common(CommonRegisters.DRIVER_FEATURE_SELECT.offset, 4, select)
            value = features >> 32 * select & 0xFFFF_FFFF
            self.set_common(CommonRegisters.DRIVER_FEATURE.offset, 4, value)

    def set_up_queues(self, queue_size: int | None = None) -> None:
        """Every queue that the device has, and vectors for them: 0 for the configuration, then one each."""
        self.set_common(CommonRegisters.CONFIG_MSIX_VECTOR.offset, 2, self.vector(0))
        for index in range(self.common(CommonRegisters.NUM_QUEUES.offset, 2)):
            self.rings.append(self.set_up_queue(index, queue_size))

    def vector(self, number: int) -> int:
        """The vector to map, none without MSI-X."""
        return number if self.mode is InterruptMode.MSIX else NO_VECTOR

    def set_up_queue(self, index: int, queue_size: int | None = None) -> DriverRing:
        """Make the rings of a queue, tell the device, enable it (4.1.5.1.3)."""
        self.set_common(CommonRegisters.QUEUE_SELECT.offset, 2, index)
        largest = self.common(CommonRegisters.QUEUE_SIZE.offset, 2)
        ring = DriverRing(
            self.heap,
            queue_size or largest,
            lambda: self.notify(index),
            event_idx=self.has(Feature.EVENT_IDX),
            indirect=self.has(Feature.INDIRECT_DESC),
        )
        self.set_common(CommonRegisters.QUEUE_SIZE.offset, 2, ring.size)
        self.set_common(CommonRegisters.QUEUE_MSIX_VECTOR.offset, 2, self.vector(1 + index))
        places = (
            (CommonRegisters.QUEUE_DESC, ring.descriptors),
            (CommonRegisters.QUEUE_DRIVER, ring.available),
            (CommonRegisters.QUEUE_DEVICE, ring.used),
        )
        for register, address in places:
            self.set_common(register.offset, 4, address & 0xFFFF_FFFF)
            self.set_common(register.offset + 4, 4, address >> 32)
        self.set_common(CommonRegisters.QUEUE_ENABLE.offset, 2, 1)
        return ring

    def has(self, feature: int) -> bool:
        """Whether a feature was negotiated."""
        return bool(self.features >> feature & 1)
