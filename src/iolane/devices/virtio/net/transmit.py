"""Packets of the driver's to the network (virtio 1.3, 5.1.6.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iolane.devices.virtio.net.header import FrameRejectedError, checked
from iolane.model.virtio import BrokenRing, Chain, RingRejection, Virtqueue
from iolane.model.virtio.chain import cut
from iolane.model.virtio.device import BATCH
from iolane.uapi.virtio_net import HEADER

if TYPE_CHECKING:
    from iolane.devices.virtio.net.device import Net


class Transmitter:
    """One transmit queue. A packet that the network does not take yet stays in the ring."""

    def __init__(self, net: Net, queue: Virtqueue, pair: int) -> None:
        self._net = net
        self.queue = queue
        self._pair = pair
        self.packets = self.bytes = 0

    def drain(self) -> bool:
        """Move packets. True: there may be more; else the driver's kick or the back end's notice comes."""
        for _ in range(BATCH):
            chain = self.queue.pop()
            if chain is None:
                return False
            if not self._take(chain):
                self.queue.unpop([chain])
                return False
            self.queue.push(chain)
        return True

    def _take(self, chain: Chain) -> bool:
        """Send, or drop by name. False: not yet."""
        net = self._net
        length = chain.readable_length - HEADER.size
        if length < 0 or chain.writable_length:
            raise BrokenRing(RingRejection.MALFORMED_REQUEST)
        try:
            header = checked(
                chain.read(net.dma, 0, HEADER.size), length, net.host_offloads, net.negotiated_mtu
            )
        except FrameRejectedError as error:
            net.counters.add(f"transmit_rejected_{error.reason.name.lower()}")
            return True
        if not net.link_up:
            net.counters.add("transmit_dropped_link_down")
            return True
        pieces = cut(chain.readable, HEADER.size, length)
        frame = [view for iova, n in pieces for view in net.dma.scatter(iova, n)]
        if not net.backend.send(self._pair, header, frame):
            return False
        self.packets += 1
        self.bytes += length
        if net.capture is not None:
            net.capture.record(frame)
        return True
