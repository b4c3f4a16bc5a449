"""The console device (virtio 1.3, 5.3)."""

from iolane.devices.virtio.console.device import Console, SizeOrder
from iolane.devices.virtio.console.function import ConsoleFunction

__all__ = ["Console", "ConsoleFunction", "SizeOrder"]
