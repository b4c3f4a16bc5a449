"""Messages of the control queues (virtio 1.3, 5.3.6.2)."""

from __future__ import annotations

import struct

from iolane.devices.virtio.console.state import CONTROL_LIMIT
from iolane.model.dma import DmaSpace
from iolane.model.virtio import Virtqueue
from iolane.uapi.virtio import ConsoleEvent

CONTROL = struct.Struct("<IHH")
"""struct virtio_console_control: id, event, value"""


def message(port: int, event: ConsoleEvent, value: int = 0, data: bytes = b"") -> bytes:
    """A control message."""
    return CONTROL.pack(port, event, value) + data


class Outbox:
    """Messages for the driver, in order, until it gives buffers for them."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.dropped = 0

    def put(self, text: bytes) -> None:
        """Queue a message. A driver that asks and never takes loses what is past the limit."""
        if len(self.waiting) < CONTROL_LIMIT:
            self.waiting.append(text)
        else:
            self.dropped += 1

    def deliver(self, queue: Virtqueue, dma: DmaSpace) -> None:
        """Put messages into the driver's buffers, one each."""
        while self.waiting:
            chain = queue.pop()
            if chain is None:
                return
            queue.push(chain, chain.write(dma, self.waiting.pop(0)))
