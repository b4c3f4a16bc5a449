"""A network interface of the guest's (virtio 1.3, 5.1)."""

from __future__ import annotations

import hashlib
import re
from typing import ClassVar

from iolane.backends.net import Capture, NetBackend, Offload
from iolane.backends.net.base import PLAIN_HEADER
from iolane.devices.virtio.net.announce import Announcer, reverse_arp
from iolane.devices.virtio.net.config import NetConfig
from iolane.devices.virtio.net.control import ControlQueue
from iolane.devices.virtio.net.features import (
    GUEST_OFFLOAD_MASK,
    HOST_OFFLOADS,
    NetFeature,
    guest_offloads,
    makes_sense,
    offload_features,
)
from iolane.devices.virtio.net.filter import ADDRESS, ReceiveFilter
from iolane.devices.virtio.net.receive import Receiver
from iolane.devices.virtio.net.state import NetState
from iolane.devices.virtio.net.transmit import Transmitter
from iolane.devices.virtio.net.way import Way
from iolane.errors import IolaneError
from iolane.memory.ring import NetPath
from iolane.model.registers import RegisterMap
from iolane.model.reset import ResetKind
from iolane.model.state import StateError
from iolane.model.virtio import VirtioDevice, Virtqueue
from iolane.model.virtio.compiled_ring import CompiledRing
from iolane.model.virtio.features import mask
from iolane.model.virtio.queue import nobody
from iolane.uapi.virtio import DeviceType
from iolane.uapi.virtio_net import NetStatus

OF_CONTROL = (
    NetFeature.MAC,
    NetFeature.STATUS,
    NetFeature.CTRL_VQ,
    NetFeature.CTRL_RX,
    NetFeature.CTRL_VLAN,
    NetFeature.CTRL_RX_EXTRA,
    NetFeature.CTRL_MAC_ADDR,
    NetFeature.GUEST_ANNOUNCE,
)
"""What a device offers that has the control queue; over vhost-user these are the front end's."""
MAX_PAIRS = 128
SMALLEST_MTU, LARGEST_MTU = 68, 65535
OWN_PREFIX = b"\x02\x69\x6f"
"""Locally administered addresses that are made here."""


class Net(VirtioDevice):
    """The network device.

    Args:
        backend: what it is plugged into; closed with the device.
        mac: the address; by default one made of the back end's name.
        queues: queue pairs.
        queue_size: largest size of a queue, a power of two.
        mtu: what the guest is told, None for nothing.
        link: whether the link is up at the start.
        control_queue: filters, address and link state are here. Over vhost-user they are the front end's.
        capture: where what passes is written; closed with the device.

    Attributes:
        link_up: whether packets pass: somebody wants it (`set_link`), and the back end has a network.
        pairs: queue pairs that the driver uses.
        host_offloads, guest_offloads: what is left to the device, and to the driver, at present.
    """

    device_type = DeviceType.NET
    Config: ClassVar[type[RegisterMap]] = NetConfig
    config: NetConfig
    chain_limit = 1024
    State = NetState
    state: NetState

    def __init__(
        self,
        backend: NetBackend,
        *,
        mac: str | None = None,
        queues: int = 1,
        queue_size: int = 256,
        mtu: int | None = None,
        link: bool = True,
        control_queue: bool = True,
        capture: Capture | None = None,
        name: str | None = None,
    ) -> None:
        _check(backend, queues, queue_size, mtu)
        names = [f"{way}{pair}" for pair in range(queues) for way in ("receive", "transmit")]
        names += ["control"] if control_queue else []
        super().__init__([queue_size] * len(names), queue_names=names, name=name)
        self.backend = backend
        self.capture = capture
        self.max_pairs = self.pairs = queues
        self.mtu = mtu
        self.front_end_mtu = 0
        self.permanent_mac = _parse_mac(mac) if mac is not None else _own_mac(backend.name)
        self.mac = self.permanent_mac
        self.has_control = control_queue
        self.filter = ReceiveFilter()
        self.host_offloads = self.guest_offloads = Offload(0)
        self._wanted = link
        self._agreed = 0
        """What was last agreed on: packets that wait for buffers are as this driver takes them."""
        self._link = link and backend.connected
        self._announce = False
        self._announcer = Announcer(self._announce_once)
        self._control = ControlQueue(self)
        self._receivers = [Receiver(self, self.queues[2 * pair], pair) for pair in range(queues)]
        self._transmitters = [Transmitter(self, self.queues[2 * pair + 1], pair) for pair in range(queues)]
        self._ways: list[Way] = [
            way for pair in zip(self._receivers, self._transmitters, strict=True) for way in pair
        ]
        """By queue."""
        self.use_pairs(1)
        self.fill_config()

    def start(self) -> None:
        """Listen to the network; called once, by whoever made the device."""
        self.backend.start(self._network_changed)
        with self.lock:
            self.backend.service()
            self.follow_link()

    # Features and configuration (5.1.3, 5.1.4).

    def offered_features(self) -> int:
        offered = mask((NetFeature.MRG_RXBUF,))
        offered |= offload_features(self.backend.offloads)
        if self.has_control:
            offered |= mask(OF_CONTROL)
            if self.backend.offloads:
                offered |= mask((NetFeature.CTRL_GUEST_OFFLOADS,))
        if self.max_pairs > 1:
            offered |= mask((NetFeature.MQ,))
        if self.mtu is not None:
            offered |= mask((NetFeature.MTU,))
        return offered

    def check_features(self, features: int) -> bool:
        return makes_sense(features, control_queue=self.has_control)

    def on_features(self, features: int) -> None:
        self.host_offloads = Offload(0)
        for offload, feature in HOST_OFFLOADS.items():
            if features >> feature & 1:
                self.host_offloads |= offload
        if features != self._agreed:
            self._agreed = features
            self._forget_pending()
        self.set_guest_offloads(features & GUEST_OFFLOAD_MASK)

    @property
    def negotiated_mtu(self) -> int | None:
        """The MTU, if the driver knows it."""
        return self.mtu if self.negotiated(NetFeature.MTU) else None

    def fill_config(self) -> None:
        if not self.has_control:
            return
        for index, byte in enumerate(self.mac):
            self.config.MAC[index] = byte
        status = NetStatus.LINK_UP if self._link else NetStatus(0)
        self.config.STATUS = status | (NetStatus.ANNOUNCE if self._announce else 0)
        self.config.MAX_VIRTQUEUE_PAIRS = self.max_pairs
        self.config.MTU = self.mtu or 0

    # The link.

    @property
    def link_up(self) -> bool:
        """Whether packets pass."""
        return self._link

    def set_link(self, up: bool) -> None:
        """Plug the cable in, or pull it; the guest is told. Packets of a link that is down are dropped."""
        with self.lock:
            self._wanted = up
            self.follow_link()

    def follow_link(self) -> None:
        """The back end's network may have come, or gone."""
        up = self._wanted and self.backend.connected
        if up != self._link:
            self._link = up
            for way in self._ways:
                if way.path is not None:
                    way.path.open = up
            self.counters.add("link_changes")
            if self.has_control:
                self.config_changed()

    def _network_changed(self, pair: int) -> None:
        with self.lock:
            if not self.paused:
                self.backend.service()
                self.follow_link()
                self.queues[2 * pair + 1].service()
                self.queues[2 * pair].service()

    # What the control queue sets (5.1.6.5).

    def set_driver_mac(self, mac: bytes) -> None:
        """The driver's own address."""
        self.mac = mac
        self.fill_config()

    def use_pairs(self, pairs: int) -> None:
        """Packets are delivered in the first `pairs` queue pairs."""
        self.pairs = pairs
        if self.has_control:
            self.backend.use_queues(pairs)

    def set_guest_offloads(self, features: int) -> None:
        """What may be left to the driver from now on, by feature bits."""
        self.guest_offloads = guest_offloads(features)
        self.backend.set_offloads(self.guest_offloads)

    # Announcing (5.1.6.5.4; vhost-user's SEND_RARP).

    def announce(self, mac: bytes) -> None:
        """Tell the network that `mac` is here."""
        with self.lock:
            self.backend.send(0, PLAIN_HEADER, [reverse_arp(mac)])
            self.counters.add("announcements")

    def _announce_once(self) -> None:
        """The driver knows VLANs and addresses, so it is asked where it can."""
        if not self.negotiated(NetFeature.GUEST_ANNOUNCE):
            self.announce(self.mac)
            return
        self._announce = True
        self.counters.add("announcements")
        self.config_changed()

    def announced(self) -> None:
        """The driver has seen that it is to announce itself."""
        self._announce = False
        self.fill_config()

    def set_mtu(self, mtu: int) -> None:
        """What the front end tells its guest (vhost-user's NET_SET_MTU). Raises IolaneError."""
        _check_mtu(mtu)
        if self.mtu is not None and mtu > self.mtu:
            raise IolaneError(f"the network of {self.name} has an MTU of {self.mtu}, not of {mtu}")
        self.front_end_mtu = mtu

    # Queues (5.1.2).

    @property
    def _control_index(self) -> int:
        """The control queue follows the pairs, and without MQ there is one pair."""
        if not self.has_control:
            return len(self.queues)
        return 2 * self.max_pairs if self.negotiated(NetFeature.MQ) else 2

    def compiled_path(self, queue: Virtqueue) -> NetPath | None:
        """Plain packets of a tap; without a control queue there are no other queues."""
        return self._ways[queue.index].compiled_path() if queue.index < len(self._ways) else None

    def on_turn(self, queue: Virtqueue) -> bool:
        """A packet that is not plain, or on its way while the link is down."""
        pair = queue.index // 2
        if queue.index % 2:
            return self._transmitters[pair].drain(1)
        more = self._receivers[pair].fill(1)
        self._receivers[pair].put_back()
        return more

    def on_kick(self, queue: Virtqueue) -> None:
        if isinstance(queue.ring, CompiledRing):
            return  # it sees by itself what there is, and asks by `on_turn`
        index = queue.index
        if index == self._control_index:
            more = self._control.drain(queue)
        elif index > self._control_index:
            more = False
        elif index % 2:
            more = self._transmitters[index // 2].drain()
        else:
            more = self._receives(index // 2) and self._receivers[index // 2].fill()
        if more:
            self.tasks.run(nobody, lambda _: queue.service(), lambda _: None)

    def _receives(self, pair: int) -> bool:
        return pair < self.pairs or not self.has_control

    def on_queue_start(self, queue: Virtqueue) -> None:
        self._follow_queues(queue.index, started=True)

    def on_queue_stop(self, queue: Virtqueue) -> None:
        self._follow_queues(queue.index, started=False)

    def _follow_queues(self, index: int, *, started: bool) -> None:
        """Over vhost-user the pairs in use are those whose rings run."""
        if self.has_control or index % 2:
            return
        running = {item.queue.index for item in self._receivers if item.queue.ring is not None} - {index}
        running |= {index} if started else set()
        self.pairs = max((number // 2 + 1 for number in running), default=1)
        self.backend.use_queues(self.pairs)

    # What Device calls.

    def reset_registers(self, kind: ResetKind) -> None:
        self.mac = self.permanent_mac
        self._announce = False
        self._announcer.stop()
        self.filter = ReceiveFilter()
        super().reset_registers(kind)
        self._forget_pending()
        self.host_offloads = Offload(0)
        self.set_guest_offloads(0)
        self.use_pairs(1)

    def _forget_pending(self) -> None:
        """Packets for another driver, or for one with other offloads."""
        for receiver in self._receivers:
            receiver.forget()

    def on_resume(self) -> None:
        self.backend.service()
        self.follow_link()
        super().on_resume()

    def on_save(self) -> None:
        super().on_save()
        state = self.state
        state.mac, state.announce, state.filter = self.mac, self._announce, self.filter
        state.max_pairs, state.pairs, state.mtu = self.max_pairs, self.pairs, self.mtu or 0
        state.offloads = offload_features(self.guest_offloads) & GUEST_OFFLOAD_MASK
        for receiver in self._receivers:
            receiver.take_back()
        state.pending = [receiver.pending for receiver in self._receivers]
        for receiver in self._receivers:
            receiver.put_back()

    def on_load(self) -> None:
        """The network learns where the guest is now, unless the front end sees to that."""
        state = self.state
        if (state.max_pairs, state.mtu) != (self.max_pairs, self.mtu or 0):
            raise StateError(
                f"the saved state has {state.max_pairs} queue pairs and an MTU of {state.mtu}, "
                f"{self.name} {self.max_pairs} and {self.mtu or 0}",
                remedy="give queues= and mtu= as before",
            )
        self.mac, self._announce, self.filter = state.mac, state.announce, state.filter
        super().on_load()
        self.on_features(self.acknowledged)
        self.set_guest_offloads(state.offloads & self.acknowledged)
        self.use_pairs(min(state.pairs, self.max_pairs))
        for receiver, packet in zip(self._receivers, state.pending, strict=False):
            receiver.pending = packet
            receiver.put_back()
        if self.has_control and state.status:
            self._announcer.start(self.clock)

    def statistics(self) -> dict[str, int | float | str]:
        shown: dict[str, int | float | str] = {"mac": self.mac.hex(":"), "link_up": int(self._link)}
        shown |= {"pairs": self.pairs, **super().statistics()}
        for way in (*self._receivers, *self._transmitters):
            shown[f"{way.queue.name}.packets"] = way.packets
            shown[f"{way.queue.name}.packet_bytes"] = way.bytes
        shown |= self.backend.statistics()
        return shown if self.capture is None else {**shown, **self.capture.statistics()}

    def release(self) -> None:
        self.backend.close()
        if self.capture is not None:
            self.capture.close()


def _check(backend: NetBackend, queues: int, queue_size: int, mtu: int | None) -> None:
    if not 1 <= queues <= MAX_PAIRS:
        raise IolaneError(f"a network device has 1 to {MAX_PAIRS} queue pairs, not {queues}")
    if queues > backend.queues:
        raise IolaneError(
            f"{backend.name} has {backend.queues} queue pairs, not {queues}", remedy="use a tap, or queues=1"
        )
    if not 2 <= queue_size <= 32768 or queue_size & (queue_size - 1):
        raise IolaneError(f"queue_size is a power of two from 2 to 32768, not {queue_size}")
    if mtu is not None:
        _check_mtu(mtu)


def _check_mtu(mtu: int) -> None:
    """5.1.4.1."""
    if not SMALLEST_MTU <= mtu <= LARGEST_MTU:
        raise IolaneError(f"an MTU is {SMALLEST_MTU} to {LARGEST_MTU} bytes, not {mtu}")


def _parse_mac(text: str) -> bytes:
    if not re.fullmatch(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}", text):
        raise IolaneError(f"'{text}' is no MAC address", remedy="mac=52:54:00:12:34:56")
    mac = bytes.fromhex(re.sub("[:-]", "", text))
    if mac[0] & 1 or not any(mac):
        raise IolaneError(f"'{text}' is no address of one interface", remedy="mac=52:54:00:12:34:56")
    return mac


def _own_mac(name: str) -> bytes:
    """The same for the same network each time, so that the guest knows its interface again."""
    return OWN_PREFIX + hashlib.sha256(name.encode()).digest()[: ADDRESS - len(OWN_PREFIX)]
