"""Virtio (1.3): devices that guests are made for, with split virtqueues in shared memory."""

from iolane.model.virtio.chain import Chain
from iolane.model.virtio.device import VirtioDevice
from iolane.model.virtio.features import Feature
from iolane.model.virtio.queue import Virtqueue
from iolane.model.virtio.rejection import BrokenRing, RingRejection
from iolane.model.virtio.split_ring import Ring, SplitRing
from iolane.model.virtio.state import QueueState, VirtioState
from iolane.model.virtio.status import Status

__all__ = [
    "BrokenRing",
    "Chain",
    "Feature",
    "QueueState",
    "Ring",
    "RingRejection",
    "SplitRing",
    "Status",
    "VirtioDevice",
    "VirtioState",
    "Virtqueue",
]
