"""The entropy device (virtio 1.3, 5.4)."""

from iolane.devices.virtio.rng.device import Rng
from iolane.devices.virtio.rng.function import RngFunction

__all__ = ["Rng", "RngFunction"]
