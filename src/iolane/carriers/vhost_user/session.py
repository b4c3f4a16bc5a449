"""What the requests of one connection share: the device, what was negotiated, memory, rings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from iolane.carriers.vhost_user.backend_requests import BackendRequests
from iolane.carriers.vhost_user.inflight import InflightArea
from iolane.carriers.vhost_user.log import LogSignal, SharedLog
from iolane.carriers.vhost_user.memory import MemoryTable
from iolane.carriers.vhost_user.network import Announcing, TakesMtu
from iolane.carriers.vhost_user.plane import DataPlane
from iolane.carriers.vhost_user.protocol import ProtocolFeature, VhostFeature, bit
from iolane.carriers.vhost_user.rejection import RefusedError, Rejection, Statistics
from iolane.carriers.vhost_user.vring import Start, Vring
from iolane.carriers.vhost_user.written_config import WrittenConfig
from iolane.errors import IolaneError
from iolane.memory.signals import Signaller
from iolane.model.dma import DmaFault
from iolane.model.virtio import Status, VirtioDevice
from iolane.uapi.virtio import DeviceType

CARRIER_FEATURES = bit(VhostFeature.LOG_ALL) | bit(VhostFeature.PROTOCOL_FEATURES)
ALWAYS = (
    ProtocolFeature.MQ,
    ProtocolFeature.LOG_SHMFD,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.CONFIG,
    ProtocolFeature.INFLIGHT_SHMFD,
    ProtocolFeature.RESET_DEVICE,
    ProtocolFeature.CONFIGURE_MEM_SLOTS,
    ProtocolFeature.STATUS,
    ProtocolFeature.DEVICE_STATE,
)
NEVER_READY = frozenset({DeviceType.RNG})
"""Devices that are not offered STATUS: their front end in QEMU 11 (hw/virtio/vhost-user-base.c, which leaves
`vq_index_end` 0) would say FEATURES_OK and never DRIVER_OK, so that their rings waited for ever."""
READY = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK


class Session:
    """Handled by the connection's thread alone; the device's lock is taken where the device is touched."""

    def __init__(
        self,
        device: VirtioDevice,
        statistics: Statistics,
        plane: DataPlane,
        written: WrittenConfig,
        signaller: Signaller,
    ) -> None:
        self.device = device
        self.statistics = statistics
        self.plane = plane
        self.written = written
        self.memory = MemoryTable(device.dma)
        self.vrings = tuple(Vring(queue, signaller) for queue in device.queues)
        self.backend_requests = BackendRequests(statistics)
        self.features = 0
        """Acknowledged, the carrier's own included."""
        self.protocol_features = 0
        self.log: SharedLog | None = None
        self.log_signal = LogSignal(signaller)
        self.inflight: InflightArea | None = None

    # Features.

    @property
    def offered(self) -> int:
        """Features of the device and the carrier."""
        return self.device.offered | CARRIER_FEATURES

    @property
    def offered_protocol_features(self) -> int:
        """What is processed for this device."""
        offered = sum(bit(feature) for feature in ALWAYS)
        if not self.device.config_size:  # QEMU's network devices complain of it
            offered &= ~bit(ProtocolFeature.CONFIG)
        if self.device.device_type in NEVER_READY:
            offered &= ~bit(ProtocolFeature.STATUS)
        if isinstance(self.device, Announcing):
            offered |= bit(ProtocolFeature.RARP)
        if isinstance(self.device, TakesMtu):
            offered |= bit(ProtocolFeature.MTU)
        return offered

    def negotiated(self, feature: ProtocolFeature) -> bool:
        """Whether the front end uses a protocol feature."""
        return bool(self.protocol_features & bit(feature))

    @property
    def device_features(self) -> int:
        """The acknowledged features that are the device's."""
        return self.features & ~CARRIER_FEATURES

    # Rings.

    def vring(self, index: int) -> Vring:
        """The ring of an index."""
        if index >= len(self.vrings):
            raise RefusedError(Rejection.VRING_INDEX, f"{index} of {len(self.vrings)}")
        return self.vrings[index]

    @property
    def running(self) -> list[Vring]:
        """The rings that run. None: the device is suspended ("Suspended device state")."""
        return [vring for vring in self.vrings if vring.running]

    def start_ready(self, named: Vring | None = None) -> None:
        """Start every ring that has all it needs. One whose memory is not there yet waits; the one that the
        front end names just now is refused, unless no memory was shared at all.
        """
        if self.negotiated(ProtocolFeature.STATUS) and Status.DRIVER_OK not in self.device.status:
            return
        for vring in self.vrings:
            if vring.running or vring.broken or not vring.enabled or not vring.complete:
                continue
            start = self._prepare(vring)
            if start is not None:
                self._start(vring, start)
            elif vring is named and self.memory.regions:
                raise RefusedError(Rejection.VRING_ADDRESS, f"ring {vring.index}: {vring.addresses}")

    def _prepare(self, vring: Vring) -> Start | None:
        """Where the ring lies and where it goes on; None while its memory is not there."""
        named, size = vring.addresses, vring.size
        assert named is not None
        with self.device.lock:
            descriptors = self.memory.translate(named.descriptors, 16 * size)
            available = self.memory.translate(named.available, 6 + 2 * size)
            used = self.memory.translate(named.used, 6 + 8 * size)
            if descriptors is None or available is None or used is None:
                return None
            if descriptors % 16 or available % 2 or used % 4:
                raise RefusedError(Rejection.VRING_ADDRESS, f"ring {vring.index} is not aligned")
            try:
                used_index = int.from_bytes(self.device.dma.read(used + 2, 2), "little")
            except DmaFault as fault:
                raise RefusedError(Rejection.VRING_ADDRESS, str(fault)) from None
        part = self.inflight.queue(vring.index) if self.inflight is not None else None
        last, heads = vring.base, tuple[int, ...]()
        if part is not None:
            if part.size < size:
                raise RefusedError(Rejection.VRING_NUM, f"{size}, but {part.size} are tracked in flight")
            recovery = part.recover(used_index, size, vring.base)
            last, heads = recovery.last_available, tuple(recovery.heads)
        start = Start(descriptors, available, used, last, used_index, heads, part)
        return self._logged(vring, start)

    def _start(self, vring: Vring, start: Start) -> None:
        self._make_ready()
        try:
            vring.running, vring.start = True, start
            self.plane.start(vring, start)
        except IolaneError as error:
            vring.running = False
            vring.broke()
            raise RefusedError(Rejection.VRING_REFUSED, str(error)) from None
        self.statistics.ring_starts += 1
        self.statistics.resubmitted += len(start.in_flight)
        vring.call()  # a back end that died may have owed this interrupt
        self.backend_requests.resume()

    def _make_ready(self) -> None:
        """Without the STATUS feature nobody says what the driver's status is: a ring that starts does."""
        with self.device.lock:
            if Status.DRIVER_OK in self.device.status:
                return
            self.device.driver_features = self.device_features
            self.device.write_status(READY)
            if Status.FEATURES_OK not in self.device.status:
                self.device.status = Status(0)
                raise RefusedError(Rejection.FEATURES_REFUSED, f"{self.device_features:#x}")
            self.written.replay(self.device)
            self.device.write_status(READY | Status.DRIVER_OK)

    def stop(self, vring: Vring) -> None:
        """Stop a ring; `vring.base` is where to go on. The driver broke no rule so far."""
        self._halt(vring)
        vring.broken = False
        if not self.running:
            self._suspend()

    def stop_all(self) -> None:
        """The device is suspended after this."""
        for vring in self.vrings:
            self.stop(vring)

    def _halt(self, vring: Vring) -> None:
        if vring.running:
            vring.base = self.plane.stop(vring)
            vring.running = False

    def _suspend(self) -> None:
        self.backend_requests.suspend()
        if not self.negotiated(ProtocolFeature.STATUS):
            with self.device.lock:
                self.device.status = Status(0)

    @contextmanager
    def halted(self, vrings: Iterable[Vring] | None = None) -> Iterator[None]:
        """Do something that rings must not run for: they stop, and go on if they still can."""
        stopped = [vring for vring in self.vrings if vring.running] if vrings is None else list(vrings)
        stopped = [vring for vring in stopped if vring.running]
        for vring in stopped:
            self._halt(vring)
        self.plane.let_go()
        try:
            yield
        finally:
            self._go_on(stopped)

    def _go_on(self, stopped: list[Vring]) -> None:
        for vring in stopped:
            try:
                self.start_ready()
            except RefusedError as error:
                self.statistics.rejections[error.rejection] += 1
                vring.broke()

    # The log.

    def _logged(self, vring: Vring, start: Start) -> Start:
        """With the log that the ring has now, and where its used ring is there."""
        assert vring.addresses is not None
        if vring.logged:
            return replace(start, log=self.log, log_address=vring.addresses.log)
        log = self.log if self.features & bit(VhostFeature.LOG_ALL) else None
        return replace(start, log=log, log_address=start.used)

    def relog(self) -> None:
        """Features, a log, or where a ring is logged were changed: rings that run go on with that. Only those
        stop, and for a moment, for which it makes a difference: a guest waits when its migration begins.
        """
        for vring in self.running:
            assert vring.start is not None
            start = self._logged(vring, vring.start)
            if start != vring.start:
                vring.start = start
                self.plane.relog(vring, start)

    def apply_log(self) -> None:
        """VHOST_F_LOG_ALL: "all the modifications to memory pointed by vring descriptors should be
        marked".
        """
        with self.device.lock:
            if self.log is not None and self.features & bit(VhostFeature.LOG_ALL):
                self.device.dma.share_dirty_log(self.log)
            else:
                self.device.dma.stop_dirty_log()

    # The end.

    def close(self) -> None:
        """Stop everything and give everything back; the device is as if nobody had been there."""
        self.stop_all()
        self.plane.close()
        self.backend_requests.close()
        for vring in self.vrings:
            vring.close()
        if self.log is not None:
            self.log.close()
        self.log_signal.close()
        if self.inflight is not None:
            self.inflight.close()
