"""vfio-user: a device for QEMU, Cloud Hypervisor and other clients, over a Unix socket."""

from iolane.carriers.listener import SocketError
from iolane.carriers.vfio_user.channel import VfioUserError
from iolane.carriers.vfio_user.client import VfioUserClient
from iolane.carriers.vfio_user.rejection import Rejection, Statistics
from iolane.carriers.vfio_user.server import Event, EventKind, VfioUserServer

__all__ = [
    "Event",
    "EventKind",
    "Rejection",
    "SocketError",
    "Statistics",
    "VfioUserClient",
    "VfioUserError",
    "VfioUserServer",
]
