"""Any virtio device as a PCI function (virtio 1.3, 4.1): modern only, MSI-X or the interrupt pin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from iolane.errors import IolaneError
from iolane.model.interrupts import InterruptMode
from iolane.model.pci import Bar, Command, Intx, Msix, MsixCapability, PciDevice, Presentation
from iolane.model.pci.bar import BuiltBar
from iolane.model.pci.capability import Capability
from iolane.model.pci.config_space import Identity
from iolane.model.region import Piece, Region, RegionIndex
from iolane.model.registers import Register8, Register16, Register32, Register64
from iolane.model.reset import ResetKind
from iolane.model.state import DeviceState, StateError
from iolane.model.virtio.device import VirtioDevice
from iolane.model.virtio.features import Feature, mask
from iolane.model.virtio.pci.capabilities import ConfigAccess, Structure
from iolane.model.virtio.pci.registers import (
    NOTIFY_STRIDE,
    CommonRegisters,
    InterruptRegisters,
    InterruptStatus,
    notify_registers,
)
from iolane.model.virtio.queue import Virtqueue
from iolane.model.virtio.status import Status
from iolane.uapi.virtio import DEVICE_ID_BASE, NO_VECTOR, VENDOR_ID, DeviceType, PciStructure

BAR = 0
BAR_SIZE = 0x4000
COMMON, INTERRUPT, DEVICE, NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
MAX_QUEUES = (BAR_SIZE - NOTIFY) // NOTIFY_STRIDE

CLASS_CODES = {
    DeviceType.NET: 0x020000,
    DeviceType.BLOCK: 0x018000,
    DeviceType.CONSOLE: 0x078000,
    DeviceType.RNG: 0x00FF00,
}
OTHER_CLASS = 0x00FF00

Vector = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]


class VirtioPciState(DeviceState):
    """MSI-X vectors that events are mapped to (4.1.5.1.2)."""

    config_vector: Vector = NO_VECTOR
    queue_vectors: list[Vector] = msgspec.field(default_factory=list)


class VirtioPci(PciDevice):
    """The function of a virtio device.

    Args:
        virtio: the device, which uses this function's memory, tasks and time from then on.
        presentation: MSI-X, or the interrupt pin alone (`intx`), for an engine that can't unplug MSI-X.

    Raises:
        IolaneError: the presentation is MSI, which virtio does not have.
    """

    vendor_id, revision_id = VENDOR_ID, 1
    subsystem_vendor_id, subsystem_id = VENDOR_ID, 0x1100
    bar0 = Bar(CommonRegisters, size=BAR_SIZE)
    intx = Intx()

    State = VirtioPciState
    state: VirtioPciState

    def __init__(
        self,
        virtio: VirtioDevice,
        *,
        presentation: Presentation | str = Presentation.AUTO,
        name: str | None = None,
    ) -> None:
        if Presentation(presentation) is Presentation.MSI:
            raise IolaneError("virtio functions have no MSI", remedy="choose presentation=msix or intx")
        if len(virtio.queues) > MAX_QUEUES:
            raise IolaneError(f"a virtio function has at most {MAX_QUEUES} queues")
        self.virtio = virtio
        self.isr = InterruptRegisters()
        self.notify = notify_registers(len(virtio.queues))()
        super().__init__(presentation=presentation, name=name or virtio.name)
        virtio.become_part_of(self)
        virtio.carrier_features = mask((Feature.ACCESS_PLATFORM, Feature.RING_RESET))
        virtio.config_interrupt = self._config_interrupt
        for queue in virtio.queues:
            queue.interrupt = lambda index=queue.index: self._queue_interrupt(index)  # type: ignore[misc]
        self.isr.hook_read(InterruptRegisters.STATUS, self._read_isr)
        self.notify.hook_write(type(self.notify).KICK, self._kick)
        with self.lock:
            virtio.reset_registers(ResetKind.CONVENTIONAL)
            self._show_all()

    # What PciDevice builds from.

    def _identity(self) -> Identity:
        identity = super()._identity()
        identity.device_id = DEVICE_ID_BASE + self.virtio.device_type
        identity.class_code = CLASS_CODES.get(self.virtio.device_type, OTHER_CLASS)
        return identity

    def _presented_capabilities(self) -> dict[str, Capability[Any]]:
        chosen = dict(self._capabilities)
        queues = len(self.virtio.queues)
        if self.presentation is not Presentation.INTX:
            chosen["msix"] = Msix(vectors=queues + 1)
        length = CommonRegisters.layout.size
        chosen["common"] = Structure(PciStructure.COMMON_CFG, BAR, COMMON, length)
        chosen["notify"] = Structure(
            PciStructure.NOTIFY_CFG, BAR, NOTIFY, NOTIFY_STRIDE * max(queues, 1), NOTIFY_STRIDE
        )
        chosen["isr"] = Structure(PciStructure.ISR_CFG, BAR, INTERRUPT, 1)
        if self.virtio.config_size:
            size = self.virtio.config.layout.storage_size
            chosen["device"] = Structure(PciStructure.DEVICE_CFG, BAR, DEVICE, size)
        chosen["access"] = ConfigAccess(BAR, lambda: self.regions)
        return chosen

    def _build_bar(self, index: int, bar: Bar[Any], msix: MsixCapability | None) -> BuiltBar:
        built = super()._build_bar(index, bar, msix)
        region = self._regions[index]
        if index == BAR and region is not None:
            pieces = [*region.pieces, Piece(INTERRUPT, 1, self.isr, "bar0.isr")]
            pieces.append(Piece(NOTIFY, self.notify.layout.size, self.notify, "bar0.notify"))
            if self.virtio.config_size:
                config = self.virtio.config
                pieces.append(Piece(DEVICE, config.layout.size, config, "bar0.config"))
            self._regions[index] = Region(RegionIndex(index), region.size, pieces, name=region.name)
        return built

    # Interrupts (4.1.5.3, 4.1.5.4).

    def _queue_interrupt(self, index: int) -> None:
        if self.interrupts.mode is InterruptMode.MSIX:
            self._raise(self.state.queue_vectors[index])
        else:
            self._assert(self.isr.STATUS.replace(QUEUE=1))

    def _config_interrupt(self) -> None:
        if Status.DRIVER_OK not in self.virtio.status:
            return
        status = self.isr.STATUS.replace(CONFIG=1)
        if self.interrupts.mode is InterruptMode.MSIX:
            self.isr.STATUS = status
            self._raise(self.state.config_vector)
        else:
            self._assert(status)

    def _raise(self, vector: int) -> None:
        if vector != NO_VECTOR:
            self.interrupts.raise_vector(vector)

    def _assert(self, status: InterruptStatus) -> None:
        self.isr.STATUS = status
        self.intx.set_level(True)

    def _read_isr(self, status: InterruptStatus) -> int:
        self.isr.STATUS = 0
        self.intx.set_level(False)
        return status

    # Common configuration: the whole device (4.1.4.3).

    @bar0.on_write(CommonRegisters.DEVICE_FEATURE_SELECT)
    def select_device_features(self, select: Register32) -> None:
        self.bar0.DEVICE_FEATURE = _window(self.virtio.offered, select)

    @bar0.on_write(CommonRegisters.DRIVER_FEATURE_SELECT)
    def select_driver_features(self, select: Register32) -> None:
        self.bar0.DRIVER_FEATURE = _window(self.virtio.driver_features, select)

    @bar0.on_write(CommonRegisters.DRIVER_FEATURE)
    def accept_driver_features(self, value: Register32) -> None:
        """Bits that are not offered are not taken; after FEATURES_OK none are (3.1.1)."""
        select = int(self.bar0.DRIVER_FEATURE_SELECT)
        if select < 2 and Status.FEATURES_OK not in self.virtio.status:
            others = self.virtio.driver_features & ~(0xFFFF_FFFF << 32 * select)
            self.virtio.driver_features = others | (value << 32 * select & self.virtio.offered)
        self.select_driver_features(self.bar0.DRIVER_FEATURE_SELECT)

    @bar0.on_read(CommonRegisters.DEVICE_STATUS)
    def read_device_status(self, value: Register8) -> int:
        return int(self.virtio.status)

    @bar0.on_write(CommonRegisters.DEVICE_STATUS)
    def write_device_status(self, value: Register8) -> None:
        self.virtio.write_status(value)
        if not value:
            self._forget_interrupts()
        self._show_all()

    @bar0.on_read(CommonRegisters.CONFIG_GENERATION)
    def read_generation(self, value: Register8) -> int:
        return self.virtio.read_generation()

    @bar0.on_write(CommonRegisters.CONFIG_MSIX_VECTOR)
    def map_config_vector(self, vector: Register16) -> None:
        self.state.config_vector = self._checked(vector)
        self.bar0.CONFIG_MSIX_VECTOR = self.state.config_vector

    def _checked(self, vector: int) -> int:
        """The vector, or NO_VECTOR where the function has no such (4.1.5.1.2.1)."""
        msix = self.interrupts.msix
        return int(vector) if isinstance(msix, MsixCapability) and vector < msix.vectors else NO_VECTOR

    def _forget_interrupts(self) -> None:
        """A reset unmaps every event (4.1.5.1.2.1)."""
        self.state.config_vector = NO_VECTOR
        self.state.queue_vectors = [NO_VECTOR] * len(self.virtio.queues)
        self.isr.STATUS = 0
        self.intx.set_level(False)

    # Common configuration: the selected queue.

    def _selected(self) -> Virtqueue | None:
        select = int(self.bar0.QUEUE_SELECT)
        return self.virtio.queues[select] if select < len(self.virtio.queues) else None

    def _settable(self) -> Virtqueue | None:
        """The selected queue while the driver may set it up: before it is enabled."""
        queue = self._selected()
        return None if queue is None or queue.enabled else queue

    @bar0.on_write(CommonRegisters.QUEUE_SELECT)
    def select_queue(self, select: Register16) -> None:
        self._show_queue()

    @bar0.on_write(CommonRegisters.QUEUE_SIZE)
    def set_queue_size(self, size: Register16) -> None:
        """A power of two up to the largest; anything else changes nothing (4.1.4.3.2)."""
        queue = self._settable()
        if queue is not None and 0 < size <= queue.max_size and not size & (size - 1):
            queue.size = int(size)
        self._show_queue()

    @bar0.on_write(CommonRegisters.QUEUE_MSIX_VECTOR)
    def map_queue_vector(self, vector: Register16) -> None:
        queue = self._selected()
        if queue is not None:
            self.state.queue_vectors[queue.index] = self._checked(vector)
        self._show_queue()

    @bar0.on_write(CommonRegisters.QUEUE_DESC)
    def set_descriptors(self, address: Register64) -> None:
        queue = self._settable()
        if queue is not None:
            queue.descriptors = int(address)
        self._show_queue()

    @bar0.on_write(CommonRegisters.QUEUE_DRIVER)
    def set_available(self, address: Register64) -> None:
        queue = self._settable()
        if queue is not None:
            queue.available = int(address)
        self._show_queue()

    @bar0.on_write(CommonRegisters.QUEUE_DEVICE)
    def set_used(self, address: Register64) -> None:
        queue = self._settable()
        if queue is not None:
            queue.used = int(address)
        self._show_queue()

    @bar0.on_write(CommonRegisters.QUEUE_ENABLE)
    def enable_queue(self, value: Register16) -> None:
        """1 enables; a driver never writes 0 (4.1.4.3.2)."""
        queue = self._settable()
        if queue is not None and value == 1:
            queue.enabled = True
            self.virtio.start_enabled(queue)
        self._show_queue()

    @bar0.on_write(CommonRegisters.QUEUE_RESET)
    def reset_queue(self, value: Register16) -> None:
        """Finish what is in flight in the queue and forget it (2.6.1); done when this returns."""
        queue = self._selected()
        if queue is not None and value == 1 and self.virtio.negotiated(Feature.RING_RESET):
            queue.stop()
            queue.reset()
            self.state.queue_vectors[queue.index] = NO_VECTOR
        self._show_queue()

    def _kick(self, index: int, value: Register16) -> None:
        if index < len(self.virtio.queues):
            self.virtio.queues[index].kick()

    # What the registers show.

    def _show_queue(self) -> None:
        bar, queue = self.bar0, self._selected()
        bar.QUEUE_SIZE = 0 if queue is None else queue.size
        bar.QUEUE_MSIX_VECTOR = NO_VECTOR if queue is None else self.state.queue_vectors[queue.index]
        bar.QUEUE_ENABLE = 0 if queue is None else queue.enabled
        bar.QUEUE_NOTIFY_OFF = 0 if queue is None else queue.index
        bar.QUEUE_DESC = 0 if queue is None else queue.descriptors
        bar.QUEUE_DRIVER = 0 if queue is None else queue.available
        bar.QUEUE_DEVICE = 0 if queue is None else queue.used
        bar.QUEUE_RESET = 0

    def _show_all(self) -> None:
        if len(self.state.queue_vectors) != len(self.virtio.queues):
            self.state.queue_vectors = [NO_VECTOR] * len(self.virtio.queues)
        bar = self.bar0
        bar.NUM_QUEUES = len(self.virtio.queues)
        bar.CONFIG_MSIX_VECTOR = self.state.config_vector
        bar.DEVICE_STATUS = int(self.virtio.status)
        self.select_device_features(bar.DEVICE_FEATURE_SELECT)
        self.select_driver_features(bar.DRIVER_FEATURE_SELECT)
        self._show_queue()

    # What Device and PciDevice call.

    def _command_changed(self, command: Command) -> None:
        """Kicks that came while Bus Master was off were not followed: look now."""
        before = self.dma.enabled
        super()._command_changed(command)
        if command.BUS_MASTER and not before:
            for queue in self.virtio.queues:
                queue.service()

    def on_pause(self) -> None:
        self.virtio.paused = True
        self.virtio.on_pause()

    def on_resume(self) -> None:
        self.virtio.paused = False
        self.virtio.on_resume()

    def reset_registers(self, kind: ResetKind) -> None:
        super().reset_registers(kind)
        self.isr.reset()
        self.virtio.reset_registers(kind)

    def reset_state(self) -> None:
        super().reset_state()
        self.virtio.reset_state()

    def on_reset(self, kind: ResetKind) -> None:
        self.virtio.on_reset(kind)
        self._forget_interrupts()
        self._show_all()

    def on_disconnect(self) -> None:
        self.virtio.on_disconnect()
        self._forget_interrupts()
        self._show_all()

    def storages(self) -> dict[str, memoryview]:
        return {**super().storages(), "isr": self.isr.storage}

    def save_extra(self) -> dict[str, Any]:
        return {**super().save_extra(), "virtio": self.virtio.save_part()}

    def load_extra(self, extra: dict[str, Any]) -> Callable[[], None]:
        take_virtio = self.virtio.load_part(extra.get("virtio"))
        take = super().load_extra({key: value for key, value in extra.items() if key != "virtio"})

        def both() -> None:
            take()
            take_virtio()

        return both

    def on_save(self) -> None:
        """The device changes the status without a write: let the register hold it."""
        self.bar0.DEVICE_STATUS = int(self.virtio.status)

    def on_load(self) -> None:
        vectors = [self.state.config_vector, *self.state.queue_vectors]
        if len(vectors) != 1 + len(self.virtio.queues) or any(self._checked(v) != v for v in vectors):
            raise StateError(f"the interrupt vectors in the saved state are not those of {self.name}")
        self.virtio.on_load()
        self._show_all()

    def statistics(self) -> dict[str, int | float | str]:
        return self.virtio.statistics()

    def close(self) -> None:
        """Also gives the device's back ends back."""
        super().close()
        with self.lock:
            self.virtio.release()


def _window(features: int, select: int) -> int:
    """The 32 features that a select register shows; there are none from bit 64 on."""
    return features >> 32 * select & 0xFFFF_FFFF if select < 2 else 0
