"""The requests about the device as a whole: features, memory, log, in-flight area, status."""

from __future__ import annotations

from iolane.carriers.descriptors import SignalKind, prepare_signal
from iolane.carriers.vhost_user import network
from iolane.carriers.vhost_user.inflight import InflightArea, make_area, parse
from iolane.carriers.vhost_user.log import SharedLog
from iolane.carriers.vhost_user.protocol import (
    INFLIGHT,
    LOG,
    MAX_MEMORY_SLOTS,
    ProtocolFeature,
    VhostFeature,
    bit,
)
from iolane.carriers.vhost_user.rejection import RefusedError, Rejection
from iolane.carriers.vhost_user.session import Session
from iolane.carriers.vhost_user.wire import Message, Reply
from iolane.errors import IolaneError
from iolane.model.virtio import Status
from iolane.uapi.virtio import DeviceType

LARGEST_STATUS = 0xFF


class Commands:
    """What no ring, configuration or state transfer is concerned with."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._device = session.device

    # Features.

    def get_features(self, message: Message) -> int:
        """Features of the device, and the carrier's own two bits."""
        return self._session.offered

    def set_features(self, message: Message) -> None:
        """While rings run only the log may be switched on and off: a migration starts or ends."""
        session, features = self._session, message.u64()
        if features & ~session.offered:
            raise RefusedError(Rejection.FEATURES_NOT_OFFERED, f"{features & ~session.offered:#x}")
        changed = features ^ session.features
        if session.running:
            if changed & ~bit(VhostFeature.LOG_ALL):
                raise RefusedError(Rejection.FEATURES_WHILE_RUNNING, f"{changed:#x}")
            session.features = features
            session.apply_log()
            session.relog()
            return
        session.features = features
        session.apply_log()
        self._renegotiate()
        if not features & bit(VhostFeature.PROTOCOL_FEATURES):
            # "the back-end must enable all rings immediately"
            for vring in session.vrings:
                vring.enabled = True
        session.start_ready()

    def _renegotiate(self) -> None:
        """The device has the features that a driver writes, and has not agreed to them yet."""
        with self._device.lock:
            self._device.driver_features = self._session.device_features
            if not self._session.negotiated(ProtocolFeature.STATUS):
                self._device.status = Status(0)

    def get_protocol_features(self, message: Message) -> int:
        """What is processed for this device."""
        return self._session.offered_protocol_features

    def set_protocol_features(self, message: Message) -> None:
        """Once is enough, but DPDK sends them again."""
        features = message.u64()
        refused = features & ~self._session.offered_protocol_features
        if refused:
            raise RefusedError(Rejection.PROTOCOL_FEATURES, f"{refused:#x}")
        self._session.protocol_features = features

    def get_queue_num(self, message: Message) -> int:
        """How many queues there are; front ends of network devices want to know pairs, as DPDK answers."""
        count = len(self._session.vrings)
        return count // 2 if self._device.device_type is DeviceType.NET else count

    # Memory.

    def set_mem_table(self, message: Message) -> None:
        """Another memory table. Rings that run go on in it."""
        with self._session.halted(), self._device.lock:
            self._session.memory.replace(message)
        self._session.start_ready()

    def get_max_mem_slots(self, message: Message) -> int:
        """As many as KVM has."""
        return MAX_MEMORY_SLOTS

    def add_mem_reg(self, message: Message) -> None:
        """One more region. Rings that run know nothing of it yet: they are started anew."""
        with self._session.halted(), self._device.lock:
            self._session.memory.add(message)
        self._session.start_ready()

    def rem_mem_reg(self, message: Message) -> None:
        """One region less. Rings that lie in it wait for another."""
        with self._session.halted(), self._device.lock:
            self._session.memory.remove(message)

    # The log.

    def set_log_base(self, message: Message) -> int:
        """Another log; the earlier one is not touched any more when this is answered."""
        session = self._session
        size, offset = message.unpack(LOG, exact=False)
        log = SharedLog(message.fds[0], size, offset, session.log_signal)
        earlier, session.log = session.log, log
        session.apply_log()
        session.relog()
        if earlier is not None:
            earlier.close()
        return 0

    def set_log_fd(self, message: Message) -> None:
        """ "Used to inform the front-end that the log has been modified": this one, and later ones."""
        try:
            prepare_signal(message.fds[0], SignalKind.EVENTFD)
        except IolaneError as error:
            raise RefusedError(Rejection.FD_KIND, str(error)) from None
        with self._session.halted(), self._device.lock:
            self._session.log_signal.use(message.take_fd())

    # What is in flight.

    def get_inflight_fd(self, message: Message) -> Reply:
        """A new area; it is used once the front end has given it back by SET_INFLIGHT_FD."""
        shape = parse(message, len(self._session.vrings))
        fd, made = make_area(shape)
        return Reply(INFLIGHT.pack(*made) + bytes(max(len(message.payload) - INFLIGHT.size, 0)), (fd,))

    def set_inflight_fd(self, message: Message) -> None:
        """The area that rings use from their next start on."""
        session = self._session
        if session.running:
            raise RefusedError(Rejection.VRING_RUNNING, "SET_INFLIGHT_FD")
        area = InflightArea(message.fds[0], parse(message, len(session.vrings)))
        earlier, session.inflight = session.inflight, area
        if earlier is not None:
            earlier.close()

    # The device.

    def reset_owner(self, message: Message) -> None:
        """ "It is recommended that back-ends either ignore this message, or use it to disable all rings"."""
        self._session.stop_all()
        for vring in self._session.vrings:
            vring.enabled = False

    def reset_device(self, message: Message) -> None:
        """ "Disable all rings and reset all internal device state to the initial state"."""
        self.reset_owner(message)
        self._reset()

    def _reset(self) -> None:
        with self._device.lock:
            self._device.reset()
            self._device.driver_features = self._session.device_features

    def set_status(self, message: Message) -> None:
        """The driver's status; 0 is a reset, and what front ends send when the machine is paused, too."""
        status = message.u64()
        if status > LARGEST_STATUS:
            raise RefusedError(Rejection.STATUS, f"{status:#x}")
        if not status:
            self._session.stop_all()
            self._reset()
            return
        with self._device.lock:
            if Status.FEATURES_OK not in self._device.status:
                self._device.driver_features = self._session.device_features
            self._device.write_status(status)
            if status & Status.FEATURES_OK:
                self._session.written.replay(self._device)
        self._session.start_ready()

    def get_status(self, message: Message) -> int:
        """The status as the device has it: FEATURES_OK only where it agrees, NEEDS_RESET where it can't go
        on.
        """
        return int(self._device.status)

    # Network.

    def send_rarp(self, message: Message) -> None:
        """Tell the network where the guest is now."""
        with self._device.lock:
            network.announce(self._device, message)

    def set_mtu(self, message: Message) -> None:
        """The MTU that the guest was given."""
        with self._device.lock:
            network.set_mtu(self._device, message)

    def set_backend_req_fd(self, message: Message) -> None:
        """The channel for our own requests."""
        self._session.backend_requests.use(message.take_fd())
