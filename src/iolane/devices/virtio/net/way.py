"""One way of a queue pair: what passed there, and what compiled code may do of it."""

from __future__ import annotations

from iolane.devices.virtio.net.owner import WayOwner
from iolane.devices.virtio.net.path import agree, net_path
from iolane.memory.ring import NetPath
from iolane.model.virtio import Virtqueue


class Way:
    """What receiving and transmitting have in common.

    Attributes:
        path: what compiled code may do; None: nothing, or it was not asked for yet.
    """

    receives = False

    def __init__(self, net: WayOwner, queue: Virtqueue, pair: int) -> None:
        self._net = net
        self.queue = queue
        self._pair = pair
        self._packets = self._bytes = 0
        self.path: NetPath | None = None

    def compiled_path(self) -> NetPath | None:
        """What compiled code may do, as it was negotiated. The queue is about to run."""
        if self.path is None:
            self.path = net_path(self._net, self._pair, receives=self.receives)
        if self.path is not None:
            agree(self.path, self._net)
        return self.path

    @property
    def packets(self) -> int:
        """Packets that passed."""
        return self._packets + (0 if self.path is None else self.path.packets)

    @property
    def bytes(self) -> int:
        """Bytes of their frames."""
        return self._bytes + (0 if self.path is None else self.path.bytes)

    def _count(self, length: int) -> None:
        self._packets += 1
        self._bytes += length
