"""The block device (virtio 1.3, 5.2)."""

from iolane.devices.virtio.block.device import Block
from iolane.devices.virtio.block.function import BlockFunction

__all__ = ["Block", "BlockFunction"]
