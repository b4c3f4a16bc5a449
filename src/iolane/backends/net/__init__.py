"""Network back ends: what a network device is plugged into."""

from iolane.backends.net.base import LARGEST_FRAME, NetBackend, Offload
from iolane.backends.net.compiled import CompiledNet
from iolane.backends.net.memory import MemoryNet
from iolane.backends.net.passt import PasstNet
from iolane.backends.net.pcap import Capture
from iolane.backends.net.socket_peer import SocketPeer, open_peer
from iolane.backends.net.tap import Tap

__all__ = [
    "LARGEST_FRAME",
    "Capture",
    "CompiledNet",
    "MemoryNet",
    "NetBackend",
    "Offload",
    "PasstNet",
    "SocketPeer",
    "Tap",
    "open_peer",
]
