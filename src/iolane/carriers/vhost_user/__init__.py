"""vhost-user: a virtio device for QEMU, User Mode Linux, DPDK, libblkio and other front ends."""

from iolane.carriers.listener import SocketError
from iolane.carriers.vhost_user.channel import VhostUserError
from iolane.carriers.vhost_user.client import VhostUserClient
from iolane.carriers.vhost_user.front_end import FrontEnd
from iolane.carriers.vhost_user.plane import DataPlane, PythonPlane
from iolane.carriers.vhost_user.rejection import Rejection, Statistics
from iolane.carriers.vhost_user.server import Event, EventKind, VhostUserServer
from iolane.carriers.vhost_user.shared_memory import SharedMemory

__all__ = [
    "DataPlane",
    "Event",
    "EventKind",
    "FrontEnd",
    "PythonPlane",
    "Rejection",
    "SharedMemory",
    "SocketError",
    "Statistics",
    "VhostUserClient",
    "VhostUserError",
    "VhostUserServer",
]
