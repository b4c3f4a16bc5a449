"""The machine's root ports and what is plugged into them; which device servers are alive."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iolane.engines.qemu.command_line import PORT_PREFIX, VfioUserDevice, place_devices
from iolane.engines.qemu.qmp import Qmp, QmpError
from iolane.errors import IolaneError

_SYS_PIDFD_GETFD = 438
_DEATH_MESSAGES = ("failed to read header", "server closed socket", "Connection reset by peer", "Broken pipe")
"""What QEMU's hw/vfio-user/proxy.c reports when the other end goes away; it does not say whose."""
_LOOK_INTERVAL = 0.5
"""A dead device makes QEMU complain at each access of the guest's: look again only so often (seconds)."""


@dataclass(frozen=True)
class DeadServer:
    """A device whose server has gone. The guest reads all ones from it; QEMU does not connect again."""

    device: VfioUserDevice

    def __str__(self) -> str:
        identity, path = self.device.id, self.device.socket
        return (
            f"the server of device {identity} ({path}) has gone and the guest's device is dead; to recover: "
            f"unplug {identity}, start its server again, plug {identity}"
        )


class Slots:
    """Plugging and unplugging, each waited for."""

    def __init__(self, qmp: Qmp, pid: int, ports: int, devices: Sequence[VfioUserDevice]) -> None:
        self._qmp = qmp
        self._pid = pid
        self._ports = ports
        self._lock = threading.Lock()
        self._plugged = {device.id: device for device in place_devices(devices, ports)}
        self._told: set[str] = set()
        self._looked = 0.0

    @property
    def plugged(self) -> list[VfioUserDevice]:
        """What is plugged in, by our own account."""
        return list(self._plugged.values())

    def plug(self, device: VfioUserDevice) -> None:
        """Plugs a device into its port, or the first free one."""
        with self._lock:
            if device.id in self._plugged:
                raise IolaneError(f"a device {device.id} is plugged in already", remedy="choose another id")
            taken = {other.port for other in self._plugged.values()}
            names = [f"{PORT_PREFIX}{number}" for number in range(1, self._ports + 1)]
            port = device.port or next((name for name in names if name not in taken), None)
            if port is None or port in taken:
                what = "all root ports are taken" if port is None else f"root port {port} is taken"
                raise IolaneError(what, remedy="unplug a device, or start the machine with more `ports`")
            check_listening(device)
            try:
                self._qmp.execute("device_add", 30.0, **device.properties(port))
            except QmpError as error:
                raise IolaneError(
                    f"device {device.id} cannot be plugged in: {error.message}",
                    remedy=f"is its server listening at {device.socket}?",
                ) from error
            self._plugged[device.id] = replace(device, port=port)
            self._told.discard(device.id)

    def unplug(self, identity: str, timeout: float) -> None:
        """Asks the guest to let go and waits for QEMU to have removed the device."""
        with self._lock:
            if identity not in self._plugged:
                raise IolaneError(
                    f"no device {identity} is plugged in",
                    remedy=f"there are: {', '.join(self._plugged) or 'none'}",
                )
            if self.has_msix(identity):
                raise IolaneError(
                    f"unplugging {identity} is refused: it presents MSI-X, and QEMU aborts when a "
                    "vfio-user device with MSI-X is removed",
                    remedy=f"present {identity} with presentation=msi to unplug it, or shut the guest down",
                )
            mark = self._qmp.mark()
            try:
                self._qmp.execute("device_del", id=identity)
            except QmpError as error:
                if "already in the process of unplug" not in error.message:
                    raise
            event = self._qmp.wait_event(
                {"DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"},
                mark,
                timeout,
                lambda event: event.get("data", {}).get("device") == identity,
            )
            if event is None:
                raise IolaneError(
                    f"the guest did not let go of {identity} within {timeout:g} s",
                    remedy="is the guest up, and does its driver let go? unplug again to go on waiting",
                )
            if event["event"] == "DEVICE_UNPLUG_GUEST_ERROR":
                raise IolaneError(
                    f"the guest refuses to let go of {identity}", remedy="stop using it in the guest"
                )
            del self._plugged[identity]

    def has_msix(self, identity: str) -> bool:
        """Whether the device presents MSI-X: QEMU then owns memory regions for its table."""
        path = f"/machine/peripheral/{identity}"
        properties = self._qmp.execute("qom-list", path=path)
        return any(entry["name"].startswith("msix-table") for entry in properties)

    def refuse_migration(self) -> None:
        """QEMU's vfio-user-pci neither migrates its state nor blocks the migration."""
        if self._plugged:
            raise IolaneError(
                f"migrating is refused: QEMU would silently drop the state of {', '.join(self._plugged)}",
                remedy="unplug these devices first, or shut the guest down and start it on the other side",
            )

    # -- device servers -----------------------------------------------------------------------------------

    @staticmethod
    def tells_of_dead_server(line: str) -> bool:
        """Whether this line of QEMU's messages says that some server has gone."""
        return any(message in line for message in _DEATH_MESSAGES)

    def newly_dead(self) -> list[DeadServer]:
        """The dead servers that have not been told of yet."""
        if time.monotonic() - self._looked < _LOOK_INTERVAL:
            return []
        found = [dead for dead in self.dead_servers() if dead.device.id not in self._told]
        self._told.update(dead.device.id for dead in found)
        self._looked = 0.0 if found else time.monotonic()
        return found

    def dead_servers(self) -> list[DeadServer]:
        """The devices whose connection has been closed by the other end."""
        alive = connected_peers(self._pid)
        return [DeadServer(device) for device in self.plugged if str(device.socket.absolute()) not in alive]


def check_listening(device: VfioUserDevice) -> None:
    """Refuses a device whose server is not there; QEMU connects once, when the device is made."""
    if not device.socket.is_socket():
        raise IolaneError(
            f"nobody listens at {device.socket} for device {device.id}", remedy="start its server first"
        )


def connected_peers(pid: int) -> set[str]:
    """The socket paths that process `pid` (a child of ours) is connected to, without those hung up.

    Its descriptors are borrowed for a moment (pidfd_getfd(2)) to ask for the peer's name and state."""
    peers = set()
    pidfd = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                is_socket = os.readlink(entry).startswith("socket:")
            except OSError:
                continue
            if is_socket and (peer := _live_peer(pidfd, int(entry.name))):
                peers.add(peer)
    finally:
        os.close(pidfd)
    return peers


def _live_peer(pidfd: int, fd: int) -> str:
    borrowed = _pidfd_getfd(pidfd, fd)
    if borrowed < 0:
        return ""
    with socket.socket(fileno=borrowed) as connection:
        try:
            peer = connection.getpeername() if connection.family == socket.AF_UNIX else ""
        except OSError:
            return ""
        poll = select.poll()
        poll.register(connection, select.POLLRDHUP)
        hung_up = any(
            events & (select.POLLHUP | select.POLLRDHUP | select.POLLERR) for _, events in poll.poll(0)
        )
    return os.path.abspath(peer) if isinstance(peer, str) and peer and not hung_up else ""


def _pidfd_getfd(pidfd: int, fd: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(ctypes.c_long(_SYS_PIDFD_GETFD), pidfd, fd, 0))
