"""A virtio device, whatever carries it: features, status, configuration, queues (virtio 1.3, 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from iolane.errors import IolaneError
from iolane.memory.ring import CompiledPath
from iolane.model.device import Device
from iolane.model.registers import RegisterMap
from iolane.model.reset import ResetKind
from iolane.model.state import Saved, StateError, from_plain, upgrade
from iolane.model.virtio.chain import Chain
from iolane.model.virtio.features import BASE_FEATURES, Feature
from iolane.model.virtio.queue import Virtqueue, nobody
from iolane.model.virtio.rejection import BrokenRing
from iolane.model.virtio.state import VirtioState
from iolane.model.virtio.status import DRIVER_BITS, Status
from iolane.uapi.virtio import DeviceType

BATCH = 256
"""Chains of one queue that are serviced before others get their turn."""


class VirtioDevice(Device):
    """Subclass it; override `handle` (or `on_kick` for queues that the device fills when it has something).

    Args:
        queue_sizes: the largest size of each queue, powers of two.
        queue_names: for counters; by default `queue0` and on.

    Attributes:
        device_type: which kind of device (5).
        Config: its configuration registers; offered by `config` and set by `fill_config`.
        chain_limit: descriptors that a chain may have even where the queue is smaller.
        carrier_features: mask of features that the carrier adds (RING_RESET, ACCESS_PLATFORM).
        withheld_features: mask of features that the carrier can't carry.
        config_interrupt: supplied by the carrier; tells the driver that the configuration changed.
        status, driver_features, acknowledged: where the driver is, what it wrote, what was agreed on.
    """

    device_type: ClassVar[DeviceType]
    Config: ClassVar[type[RegisterMap]] = RegisterMap
    chain_limit: ClassVar[int] = 0
    State = VirtioState
    state: VirtioState

    def __init__(
        self,
        queue_sizes: Sequence[int],
        *,
        queue_names: Sequence[str] = (),
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.config = self.Config()
        self.carrier_features = 0
        self.withheld_features = 0
        self.config_interrupt: Callable[[], None] = nobody
        self.status = Status(0)
        self.driver_features = 0
        self.acknowledged = 0
        names = queue_names or [f"queue{index}" for index in range(len(queue_sizes))]
        self.queues = tuple(
            Virtqueue(self, index, size, name)
            for index, (size, name) in enumerate(zip(queue_sizes, names, strict=True))
        )
        self._function: Device | None = None
        self._generation = 0
        self._config_changed = False

    # What a kind of device overrides. All are called with the lock held.

    def offered_features(self) -> int:
        """Mask of the features of this kind of device that are offered."""
        return 0

    def check_features(self, features: int) -> bool:
        """Whether this subset of the offered features makes sense (2.2.2)."""
        return True

    def on_features(self, features: int) -> None:
        """The driver and the device agreed on features."""

    def fill_config(self) -> None:
        """Set the configuration registers: after a reset, a load, and when something changed.

        Those that the driver writes are hooked (`self.config.hook_write`).
        """

    def on_driver_ok(self) -> None:
        """The driver is ready; queues run."""

    def on_queue_start(self, queue: Virtqueue) -> None:
        """A queue is about to run. IolaneError refuses it."""

    def on_queue_stop(self, queue: Virtqueue) -> None:
        """A queue does not run any more."""

    def on_kick(self, queue: Virtqueue) -> None:
        """There may be chains in the queue: by default each is taken and handled."""
        for _ in range(BATCH):
            chain = queue.pop()
            if chain is None:
                return
            self.handle(queue, chain)
        self.tasks.run(nobody, lambda _: queue.service(), lambda _: None)

    def handle(self, queue: Virtqueue, chain: Chain) -> None:
        """Do what a chain asks for, and give it back by `queue.push`, now or when a task has ended."""
        raise NotImplementedError

    def compiled_path(self, queue: Virtqueue) -> CompiledPath | None:
        """What compiled code may do of this queue by itself; None: everything is done the readable way."""
        return None

    def on_turn(self, queue: Virtqueue) -> bool:
        """Do, the readable way, the one packet that compiled code leaves. False: it has to wait."""
        raise NotImplementedError

    def release(self) -> None:
        """Give back what the host lent (back ends); called once, at the very end."""

    # Features (2.2).

    @property
    def offered(self) -> int:
        """Mask of every feature that the driver is offered."""
        return (BASE_FEATURES | self.offered_features() | self.carrier_features) & ~self.withheld_features

    def negotiated(self, feature: int) -> bool:
        """Whether driver and device agreed on a feature."""
        return bool(self.acknowledged >> feature & 1)

    def accept_features(self, features: int) -> bool:
        """The driver accepts `features`. False: it may not, nothing changed (2.2.2)."""
        if features & ~self.offered or not features >> Feature.VERSION_1 & 1:
            return False
        if not self.check_features(features):
            return False
        self.acknowledged = features
        self.on_features(features)
        return True

    # Status (2.1 and 3.1).

    def write_status(self, value: int) -> None:
        """The driver writes the status; 0 resets. Bits are never cleared one by one (2.1.1)."""
        if value == 0:
            self.reset()
            return
        wanted = Status(value & DRIVER_BITS) & ~self.status
        if Status.FEATURES_OK in wanted and not self.accept_features(self.driver_features):
            wanted &= ~Status.FEATURES_OK
            self.counters.add("features_refused")
        if Status.DRIVER_OK in wanted and Status.FEATURES_OK not in self.status | wanted:
            wanted &= ~Status.DRIVER_OK
            self.counters.add("driver_ok_refused")
        self.status |= wanted
        if Status.DRIVER_OK in wanted:
            self.on_driver_ok()
            for queue in self.queues:
                self.start_enabled(queue)

    def start_enabled(self, queue: Virtqueue) -> None:
        """Start a queue that the driver enabled, if the driver is ready. For carriers with a status."""
        if not queue.enabled or queue.ring is not None or Status.DRIVER_OK not in self.status:
            return
        try:
            queue.start()
        except IolaneError as error:
            self.report_error(f"the start of queue {queue.name}", error)
            self.fail()

    def fail(self) -> None:
        """The device can't go on: DEVICE_NEEDS_RESET, and the driver is told (2.1.2)."""
        if Status.NEEDS_RESET in self.status:
            return
        self.counters.add("needs_reset")
        self.status |= Status.NEEDS_RESET
        if Status.DRIVER_OK in self.status:
            self.config_interrupt()

    # Configuration (2.5).

    def read_config(self, offset: int, length: int) -> bytes:
        """Bytes of the configuration; past its end they are 0."""
        return b"".join(
            self.config.read(at, 1).to_bytes(1, "little") for at in range(offset, offset + length)
        )

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver (or the carrier for it) writes configuration; what is read-only stays."""
        for at, byte in enumerate(data, offset):
            self.config.write(at, 1, byte)

    @property
    def config_size(self) -> int:
        """Bytes of the configuration."""
        return self.config.layout.size

    def config_changed(self) -> None:
        """Set the configuration anew and tell the driver."""
        self.fill_config()
        self._config_changed = True
        self.config_interrupt()

    def read_generation(self) -> int:
        """The driver reads the generation: another one if anything changed since the last (4.1.4.3.1)."""
        if self._config_changed:
            self._config_changed = False
            self._generation = (self._generation + 1) & 0xFF
        return self._generation

    # What Device calls.

    def reset_registers(self, kind: ResetKind) -> None:
        """Status, features, queues and configuration as at the start (2.4)."""
        self.status = Status(0)
        self.driver_features = self.acknowledged = 0
        for queue in self.queues:
            queue.reset()
        self.config.reset()
        self.fill_config()

    def on_pause(self) -> None:
        """Queues that a thread of their own serves rest."""
        for queue in self.queues:
            if queue.ring is not None:
                queue.ring.pause()

    def on_resume(self) -> None:
        """Look for what the driver did in the meantime."""
        for queue in self.queues:
            if queue.ring is not None:
                queue.ring.resume()
            queue.service()

    def on_disconnect(self) -> None:
        """The driver's memory is gone, and with it the queues."""
        self.reset_registers(ResetKind.CONVENTIONAL)

    def storages(self) -> Mapping[str, memoryview]:
        return {"config": self.config.storage} if self.config.layout.size else {}

    def on_save(self) -> None:
        """Put status and queues into `state`."""
        self.state.status = int(self.status)
        self.state.driver_features = self.driver_features
        self.state.acknowledged = self.acknowledged
        self.state.generation = self._generation
        self.state.queues = [queue.save() for queue in self.queues]

    def _capture(self) -> Saved:
        self.on_save()
        return super()._capture()

    def on_load(self) -> None:
        state = self.state
        if len(state.queues) > len(self.queues):
            raise StateError(
                f"the saved state has {len(state.queues)} queues, {self.name} {len(self.queues)}"
            )
        if state.acknowledged & ~self.offered:
            missing = state.acknowledged & ~self.offered
            raise StateError(f"the saved state needs features {missing:#x} that {self.name} does not offer")
        self.status = Status(state.status & (DRIVER_BITS | Status.NEEDS_RESET))
        self.driver_features = state.driver_features
        self.acknowledged = state.acknowledged
        self._generation = state.generation
        self._config_changed = True
        self.fill_config()
        try:
            for queue, saved in zip(self.queues, state.queues, strict=False):
                queue.load(saved)
        except BrokenRing as error:
            raise StateError(f"the saved state has an impossible queue: {error}") from None

    def statistics(self) -> dict[str, int | float | str]:
        shown: dict[str, int | float | str] = {"status": int(self.status), "features": hex(self.acknowledged)}
        for queue in self.queues:
            shown |= queue.statistics()
        return shown

    def close(self) -> None:
        """Also gives the back ends back."""
        super().close()
        with self.lock:
            self.release()

    # As a part of a function (virtio-pci): its lock, memory, tasks and time are this device's, too.

    def become_part_of(self, function: Device) -> None:
        """Use the facilities of `function`, which from now on pauses, resets, saves and closes this."""
        self._function = function
        self.lock, self.changed = function.lock, function.changed
        self._activity = function._activity
        self.dma, self.tasks, self.clock = function.dma, function.tasks, function.clock
        self.counters = function.counters

    def pause(self) -> None:
        """See `Device.pause`."""
        if self._function is None:
            super().pause()
        else:
            self._function.pause()

    def resume(self) -> None:
        """See `Device.resume`."""
        if self._function is None:
            super().resume()
        else:
            self._function.resume()

    def report_error(self, where: str, error: Exception) -> None:
        """See `Device.report_error`."""
        if self._function is None:
            super().report_error(where, error)
        else:
            self._function.report_error(where, error)

    def save_part(self) -> dict[str, Any]:
        """`save` as plain data, for the function's document."""
        plain: dict[str, Any] = msgspec.to_builtins(self._capture(), builtin_types=(bytes,))
        return plain

    def load_part(self, plain: object) -> Callable[[], None]:
        """Check what `save_part` gave and return the call that takes it; `on_load` is called after that.

        Raises:
            StateError: it isn't of this kind of device, newer, or malformed.
        """
        try:
            saved = msgspec.convert(plain, Saved)
        except (msgspec.MsgspecError, ValueError) as error:
            raise StateError(f"the saved state of {self.state_kind} is malformed: {error}") from None
        saved = upgrade(saved, self.state_kind, self.state_version, self.upgrades)
        state = from_plain(saved.state, self.State)
        self._check_storages(saved)
        take_extra = self.load_extra(saved.extra)

        def take() -> None:
            for name, storage in self.storages().items():
                storage[:] = saved.regions[name]
            self.state = state
            take_extra()

        return take
