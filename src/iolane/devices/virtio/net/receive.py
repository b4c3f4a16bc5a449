"""Packets from the network into the driver's buffers (virtio 1.3, 5.1.6.3 and 5.1.6.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iolane.devices.virtio.net.features import NetFeature
from iolane.devices.virtio.net.filter import ADDRESS
from iolane.devices.virtio.net.header import (
    ETHERNET_HEADER,
    VLAN_TAG,
    PacketHeader,
    complete_checksum,
    segmentation,
)
from iolane.model.virtio import BrokenRing, Chain, RingRejection, Virtqueue
from iolane.model.virtio.device import BATCH
from iolane.uapi.virtio_net import HEADER, Gso, HeaderFlag

if TYPE_CHECKING:
    from iolane.devices.virtio.net.device import Net

_BUFFERS_AT = HEADER.size - 2
_CHECKSUM_FLAGS = HeaderFlag.NEEDS_CSUM | HeaderFlag.DATA_VALID


class Receiver:
    """One receive queue.

    Attributes:
        pending: a packet, header and frame, that waits for buffers.
    """

    def __init__(self, net: Net, queue: Virtqueue, pair: int) -> None:
        self._net = net
        self.queue = queue
        self._pair = pair
        self.pending = b""
        self.packets = self.bytes = 0

    def fill(self) -> bool:
        """Move packets. True: there may be more; else the driver's kick or the back end's notice comes."""
        net = self._net
        for _ in range(BATCH):
            if self.pending:
                packet: bytes | bytearray | memoryview = self.pending
            else:
                found = net.backend.receive(self._pair)
                if found is None:
                    net.follow_link()
                    return False
                admitted = self._admit(found)
                if admitted is None:
                    continue
                packet = admitted
            if not self._deliver(packet):
                self.pending = bytes(packet)
                return False
            self.pending = b""
        return True

    # What the driver wants.

    def _admit(self, packet: bytes | memoryview) -> bytes | bytearray | memoryview | None:
        """The packet as the driver may have it, or None."""
        reason = self._unwanted(packet)
        if reason:
            self._net.counters.add(f"receive_{reason}")
            return None
        return self._suited(packet)

    def _unwanted(self, packet: bytes | memoryview) -> str:
        net, length = self._net, len(packet) - HEADER.size
        if length < ETHERNET_HEADER:
            return "runts"
        if not net.link_up:
            return "dropped_link_down"
        frame = memoryview(packet)[HEADER.size :]
        target = bytes(frame[:ADDRESS])
        if net.negotiated(NetFeature.CTRL_RX) and not net.filter.passes_address(target, net.mac):
            return "filtered_address"
        if net.negotiated(NetFeature.CTRL_VLAN) and not net.filter.passes_vlan(frame):
            return "filtered_vlan"
        kind = packet[1]
        if kind == Gso.NONE:
            mtu = net.negotiated_mtu
            too_long = mtu is not None and length > mtu + ETHERNET_HEADER + VLAN_TAG
            return "dropped_over_mtu" if too_long else ""
        needed = segmentation(kind)
        return "dropped_offload" if needed is None or needed & ~net.guest_offloads else ""

    def _suited(self, packet: bytes | memoryview) -> bytes | bytearray | memoryview:
        """Without GUEST_CSUM flags are zero and the checksum is complete (5.1.6.4.1)."""
        if self._net.negotiated(NetFeature.GUEST_CSUM) or not packet[0] & _CHECKSUM_FLAGS:
            return packet
        header = PacketHeader.unpack(packet)
        frame = bytearray(packet[HEADER.size :])
        if header.flags & HeaderFlag.NEEDS_CSUM:
            complete_checksum(frame, header.csum_start, header.csum_offset)
        return bytearray(HEADER.size) + frame

    # Buffers.

    def _deliver(self, packet: bytes | bytearray | memoryview) -> bool:
        """Put a packet into buffers. False: there are not enough now."""
        length, net, queue = len(packet), self._net, self.queue
        chains = self._gather(length)
        if chains is None:
            return False
        if not chains:
            return True
        view, done = memoryview(packet), 0
        for chain in chains:
            count = min(chain.writable_length, length - done)
            chain.write(net.dma, view[done : done + count])
            if not done:
                chain.write(net.dma, len(chains).to_bytes(2, "little"), _BUFFERS_AT)
            done += count
            queue.push(chain, count)
        self.packets += 1
        self.bytes += length - HEADER.size
        if net.capture is not None:
            net.capture.record([view[HEADER.size :]])
        return True

    def _gather(self, length: int) -> list[Chain] | None:
        """Buffers for so many bytes; None: there are not enough yet; []: there never will be."""
        queue = self.queue
        mergeable = self._net.negotiated(NetFeature.MRG_RXBUF)
        chains: list[Chain] = []
        room = 0
        while room < length:
            chain = queue.pop()
            if chain is None:
                queue.unpop(chains)
                return None
            if chain.writable_length < (1 if chains else HEADER.size) or chain.readable_length:
                raise BrokenRing(RingRejection.MALFORMED_REQUEST)
            chains.append(chain)
            room += chain.writable_length
            if room < length and (not mergeable or len(chains) >= queue.size):
                queue.unpop(chains)
                self._net.counters.add("receive_dropped_small_buffers")
                return []
        return chains
