"""Packets of the driver's to the network (virtio 1.3, 5.1.6.2)."""

from __future__ import annotations

from iolane.devices.virtio.net.header import FrameRejectedError, checked
from iolane.devices.virtio.net.way import Way
from iolane.model.virtio import BrokenRing, Chain, RingRejection
from iolane.model.virtio.chain import cut
from iolane.model.virtio.device import BATCH
from iolane.uapi.virtio_net import HEADER


class Transmitter(Way):
    """One transmit queue. A packet that the network does not take yet stays in the ring."""

    def drain(self, limit: int = BATCH) -> bool:
        """Move packets. True: there may be more; else the driver's kick or the back end's notice comes."""
        for _ in range(limit):
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
        self._count(length)
        if net.capture is not None:
            net.capture.record(frame)
        return True
