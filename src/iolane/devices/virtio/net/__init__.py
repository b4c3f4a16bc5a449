"""The network device (virtio 1.3, 5.1)."""

from iolane.devices.virtio.net.bare import BareNet
from iolane.devices.virtio.net.device import Net
from iolane.devices.virtio.net.function import NetFunction

__all__ = ["BareNet", "Net", "NetFunction"]
