"""Packets from the network into the driver's buffers (virtio 1.3, 5.1.6.3 and 5.1.6.4)."""

from __future__ import annotations

from iolane.devices.virtio.net.features import NetFeature
from iolane.devices.virtio.net.filter import ADDRESS
from iolane.devices.virtio.net.header import (
    ETHERNET_HEADER,
    VLAN_TAG,
    PacketHeader,
    complete_checksum,
    segmentation,
)
from iolane.devices.virtio.net.owner import WayOwner
from iolane.devices.virtio.net.way import Way
from iolane.memory.ring import NetPath
from iolane.model.virtio import BrokenRing, Chain, RingRejection, Virtqueue
from iolane.model.virtio.device import BATCH
from iolane.uapi.virtio_net import HEADER, Gso, HeaderFlag

_BUFFERS_AT = HEADER.size - 2
_CHECKSUM_FLAGS = HeaderFlag.NEEDS_CSUM | HeaderFlag.DATA_VALID


class Receiver(Way):
    """One receive queue.

    Attributes:
        pending: a packet, header and frame, that waits for buffers.
    """

    receives = True

    def __init__(self, net: WayOwner, queue: Virtqueue, pair: int) -> None:
        super().__init__(net, queue, pair)
        self.pending = b""

    def fill(self, limit: int = BATCH) -> bool:
        """Move packets. True: there may be more; else the driver's kick or the back end's notice comes."""
        net = self._net
        self.take_back()
        for _ in range(limit):
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

    # Compiled code reads packets, too: what it could not deliver lies at the back end's port.

    def compiled_path(self) -> NetPath | None:
        path = super().compiled_path()
        self.put_back()
        return path

    def put_back(self) -> None:
        """Compiled code, if it is there, goes on with the packet that waits."""
        if self.path is not None and self.pending:
            self.path.port.put_back(self.pending)
            self.pending = b""

    def take_back(self) -> None:
        """The packet that compiled code could not deliver, if there is one and it is wanted, waits here."""
        port = None if self.path is None or self.pending else self.path.port
        packet = None if port is None else port.take_back()
        if port is not None and packet is not None:
            self.pending = packet if port.admitted else bytes(self._admit(packet) or b"")

    def forget(self) -> None:
        """What waits is for another driver, or for one with other offloads."""
        self.pending = b""
        if self.path is not None:
            self.path.port.take_back()

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
        self._count(length - HEADER.size)
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
