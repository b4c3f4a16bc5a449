"""The control socket: one per serving process, for `iolane devices`, `trace` and `reset`."""

from iolane.carriers.control.client import ControlClient, find_device, held_functions, serving
from iolane.carriers.control.messages import (
    DeviceReport,
    Done,
    Event,
    HeldReport,
    ListDevices,
    ListHeld,
    Refusal,
    ResetDevice,
    SaveDevice,
    ServerReport,
    SetTrace,
)
from iolane.carriers.control.runtime import (
    RunDirectory,
    check_socket_path,
    is_served,
    remove_stale,
    runtime_directory,
    write_private,
)
from iolane.carriers.control.server import Controlled, ControlServer, Sink

__all__ = [
    "ControlClient",
    "ControlServer",
    "Controlled",
    "DeviceReport",
    "Done",
    "Event",
    "HeldReport",
    "ListDevices",
    "ListHeld",
    "Refusal",
    "ResetDevice",
    "RunDirectory",
    "SaveDevice",
    "ServerReport",
    "SetTrace",
    "Sink",
    "check_socket_path",
    "find_device",
    "held_functions",
    "is_served",
    "remove_stale",
    "runtime_directory",
    "serving",
    "write_private",
]
