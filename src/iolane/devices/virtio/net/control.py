"""Commands of the control queue (virtio 1.3, 5.1.6.5)."""

from __future__ import annotations

import struct
from collections.abc import Callable

from iolane.devices.virtio.net.features import GUEST_OFFLOAD_MASK, NetFeature
from iolane.devices.virtio.net.filter import ADDRESS, VLANS
from iolane.devices.virtio.net.owner import ControlOwner
from iolane.model.virtio import BrokenRing, RingRejection, Virtqueue
from iolane.model.virtio.device import BATCH
from iolane.uapi.virtio_net import (
    CTRL_ANNOUNCE_ACK,
    CTRL_GUEST_OFFLOADS_SET,
    CTRL_MQ_VQ_PAIRS_SET,
    Ack,
    Control,
    ControlMac,
    ControlRx,
    ControlVlan,
)

HEADER = struct.Struct("<BB")
"""class, command"""
COUNT = struct.Struct("<I")
LARGEST = 1 << 17
"""Bytes of a command; two tables of ten thousand addresses."""

Handler = Callable[[bytes], None]


class WrongCommand(Exception):  # noqa: N818  it is the driver's, and answered by ERR
    """The command can't be done."""


class ControlQueue:
    """Does commands; what can't be done is answered by ERR, and counted."""

    def __init__(self, net: ControlOwner) -> None:
        self._net = net
        feature = NetFeature
        self._table: dict[tuple[int, int], tuple[NetFeature, Handler]] = {
            (Control.MAC, ControlMac.TABLE_SET): (feature.CTRL_RX, self._set_tables),
            (Control.MAC, ControlMac.ADDR_SET): (feature.CTRL_MAC_ADDR, self._set_address),
            (Control.VLAN, ControlVlan.ADD): (feature.CTRL_VLAN, lambda data: self._set_vlan(data, True)),
            (Control.VLAN, ControlVlan.DEL): (feature.CTRL_VLAN, lambda data: self._set_vlan(data, False)),
            (Control.ANNOUNCE, CTRL_ANNOUNCE_ACK): (feature.GUEST_ANNOUNCE, self._announced),
            (Control.MQ, CTRL_MQ_VQ_PAIRS_SET): (feature.MQ, self._set_pairs),
            (Control.GUEST_OFFLOADS, CTRL_GUEST_OFFLOADS_SET): (
                feature.CTRL_GUEST_OFFLOADS,
                self._set_offloads,
            ),
        }
        for mode in ControlRx:
            extra = mode not in (ControlRx.PROMISC, ControlRx.ALLMULTI)
            needed = feature.CTRL_RX_EXTRA if extra else feature.CTRL_RX
            self._table[Control.RX, mode] = (needed, self._mode_setter(mode))

    def drain(self, queue: Virtqueue) -> bool:
        """Do commands. True: there may be more."""
        net = self._net
        for _ in range(BATCH):
            chain = queue.pop()
            if chain is None:
                return False
            if chain.readable_length < HEADER.size or not chain.writable_length:
                raise BrokenRing(RingRejection.MALFORMED_REQUEST)
            ack = self._answer(chain.read(net.dma, 0, LARGEST + 1))
            queue.push(chain, chain.write(net.dma, bytes((ack,))))
        return True

    def _answer(self, data: bytes) -> Ack:
        try:
            self._do(data)
        except WrongCommand as error:
            self._net.counters.add(f"control_{error}")
            return Ack.ERR
        self._net.counters.add("control_commands")
        return Ack.OK

    def _do(self, data: bytes) -> None:
        if len(data) > LARGEST:
            raise WrongCommand("too_long")
        entry = self._table.get(HEADER.unpack_from(data))
        if entry is None:
            raise WrongCommand("unknown")
        feature, handler = entry
        if not self._net.negotiated(feature):
            raise WrongCommand("not_negotiated")
        handler(data[HEADER.size :])

    # Receive filtering (5.1.6.5.1 to 5.1.6.5.3).

    def _mode_setter(self, mode: ControlRx) -> Handler:
        def set_mode(data: bytes) -> None:
            if data not in (b"\0", b"\1"):
                raise WrongCommand("malformed")
            self._net.filter.set_mode(mode, data == b"\1")

        return set_mode

    def _set_tables(self, data: bytes) -> None:
        """Two tables; the old ones stay if either is malformed."""
        unicast, rest = _addresses(data)
        multicast, rest = _addresses(rest)
        if rest:
            raise WrongCommand("malformed")
        self._net.filter.set_tables(unicast, multicast)

    def _set_address(self, data: bytes) -> None:
        if len(data) != ADDRESS:
            raise WrongCommand("malformed")
        self._net.set_driver_mac(data)

    def _set_vlan(self, data: bytes, passes: bool) -> None:
        vlan = _u16(data)
        if vlan >= VLANS:
            raise WrongCommand("out_of_range")
        self._net.filter.set_vlan(vlan, passes)

    # Announcing, queue pairs, offloads (5.1.6.5.4, 5.1.6.5.6, 5.1.6.5.8).

    def _announced(self, data: bytes) -> None:
        if data:
            raise WrongCommand("malformed")
        self._net.announced()

    def _set_pairs(self, data: bytes) -> None:
        pairs = _u16(data)
        if not 1 <= pairs <= self._net.max_pairs:
            raise WrongCommand("out_of_range")
        self._net.use_pairs(pairs)

    def _set_offloads(self, data: bytes) -> None:
        """Only what was negotiated can be switched on (5.1.6.5.8.2)."""
        if len(data) != 8:
            raise WrongCommand("malformed")
        wanted = int.from_bytes(data, "little")
        if wanted & ~(self._net.acknowledged & GUEST_OFFLOAD_MASK):
            raise WrongCommand("out_of_range")
        self._net.set_guest_offloads(wanted)


def _addresses(data: bytes) -> tuple[list[bytes], bytes]:
    """A table of addresses, and what follows it."""
    if len(data) < COUNT.size:
        raise WrongCommand("malformed")
    (count,) = COUNT.unpack_from(data)
    end = COUNT.size + ADDRESS * count
    if end > len(data):
        raise WrongCommand("malformed")
    return [data[at : at + ADDRESS] for at in range(COUNT.size, end, ADDRESS)], data[end:]


def _u16(data: bytes) -> int:
    if len(data) != 2:
        raise WrongCommand("malformed")
    return int.from_bytes(data, "little")
