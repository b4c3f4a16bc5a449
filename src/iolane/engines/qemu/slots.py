"""The machine's root ports and what is plugged into them; which device servers are alive."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from iolane.engines.outcome import UnplugOutcome
from iolane.engines.qemu.command_line import PORT_PREFIX, MachineDevice, VfioUserDevice, place_devices
from iolane.engines.qemu.descriptors import connected_peers
from iolane.engines.qemu.guard import ServerGuard
from iolane.engines.qemu.patience import patient
from iolane.engines.qemu.qmp import Qmp, QmpError, QmpLostError
from iolane.engines.qemu.vfio import VfioPciDevice
from iolane.engines.qemu.vhost_user import VhostUserDevice
from iolane.errors import IolaneError

_DEATH_MESSAGES = (
    *("failed to read header", "server closed socket", "Connection reset by peer", "Broken pipe"),
    "Failed to set msg fds",
)
"""What QEMU's hw/vfio-user/proxy.c and hw/virtio/vhost-user.c report when the other end goes away, without
saying whose."""
_BUSY = ("already in the process of unplug", "guest is busy")
"""What QEMU says of a device whose unplug is under way (hw/core/qdev.c, hw/pci/pcie.c)."""
_LOOK_INTERVAL = 0.5
"""A dead device makes QEMU complain at each access of the guest's: look again only so often (seconds)."""


@dataclass(frozen=True)
class DeadServer:
    """A device whose server has gone, and that QEMU does not connect again: one of vfio-user, from which the
    guest reads all ones, or one of vhost-user with a frail front end, whose requests never end."""

    device: VfioUserDevice | VhostUserDevice
    pluggable: bool = True
    """Whether it can be unplugged: not with MSI-X."""

    @property
    def recovery(self) -> str:
        """What brings the device back."""
        if self.pluggable:
            return f"unplug {self.device.id}, start its server again, plug {self.device.id}"
        return (
            f"stop the machine, start the server of {self.device.id} again, start the machine; with "
            "presentation=msi the device could be unplugged and plugged instead"
        )

    def __str__(self) -> str:
        return (
            f"the server of device {self.device.id} ({self.device.socket}) has gone and the guest's device "
            f"is dead; to recover: {self.recovery}"
        )


class Slots:
    """Plugging and unplugging, each waited for."""

    def __init__(self, qmp: Qmp, pid: int, ports: int, devices: Sequence[MachineDevice]) -> None:
        self._qmp = qmp
        self._pid = pid
        self._ports = ports
        self._lock = threading.Lock()
        self._plugged = {device.id: device for device in place_devices(devices, ports)}
        self._told: set[str] = set()
        self._guard = ServerGuard(pid)
        self._with_msix: set[str] = set()
        self._leaving: set[str] = set()
        for device in self._plugged.values():
            self._plugged_in(device)
        self._looked = 0.0

    @property
    def plugged(self) -> list[MachineDevice]:
        """What is plugged in, by our own account."""
        return list(self._plugged.values())

    @property
    def leaving(self) -> frozenset[str]:
        """The devices that the guest was asked to let go of and has not yet."""
        return frozenset(self._leaving)

    def plug(self, device: MachineDevice) -> MachineDevice:
        """Plugs a device into its port, or the first free one; the device with its port."""
        with self._lock:
            if device.id in self._plugged:
                raise IolaneError(f"a device {device.id} is plugged in already", remedy="choose another id")
            self._refuse_beside_vfio_user(device)
            taken = {other.port for other in self._plugged.values()}
            names = [f"{PORT_PREFIX}{number}" for number in range(1, self._ports + 1)]
            port = device.port or next((name for name in names if name not in taken), None)
            if port is None or port in taken:
                what = "all root ports are taken" if port is None else f"root port {port} is taken"
                raise IolaneError(what, remedy="unplug a device, or start the machine with more `ports`")
            device.check()
            try:
                device.plug(self._qmp, port)
            except QmpError as error:
                raise IolaneError(
                    f"device {device.id} cannot be plugged in: {error.message}", remedy=device.remedy
                ) from error
            placed = self._plugged[device.id] = replace(device, port=port)
            self._plugged_in(device)
            return placed

    def _refuse_beside_vfio_user(self, device: MachineDevice) -> None:
        """QEMU 11 would abort: hw/vfio/container-legacy.c takes every container for one of its own."""
        others = [each.id for each in self.plugged if isinstance(each, VfioUserDevice)]
        if isinstance(device, VfioPciDevice) and others:
            raise IolaneError(
                f"plugging {device.id} is refused: QEMU aborts when a physical function comes to a machine "
                f"with devices by vfio-user ({', '.join(others)})",
                remedy="have the function from the start of the machine, or mediate it",
            )

    def _plugged_in(self, device: MachineDevice) -> None:
        self._told.discard(device.id)
        if not isinstance(device, VfioUserDevice):
            return  # QEMU owns its function: there is nothing to guard
        self._with_msix.discard(device.id)
        if self.has_msix(device.id):
            self._with_msix.add(device.id)
        self._guard.watch(device.id, device.socket)
        for number, socket in enumerate(device.virtual):
            self._guard.watch(device.virtual_id(number), socket)

    def why_not_unplug(self, identity: str) -> tuple[str, str] | None:
        """Why QEMU would not survive that this device is removed, and the way out; None where it does."""
        device = self._plugged.get(identity)
        if not isinstance(device, VfioUserDevice):
            return None
        if device.virtual:
            return (
                "its virtual functions would go with it, which QEMU does not survive where they have MSI-X",
                "shut the guest down",
            )
        if identity in self._with_msix:
            return (
                "it presents MSI-X, and QEMU aborts when a vfio-user device with MSI-X is removed",
                f"present {identity} with presentation=msi to unplug it, or shut the guest down",
            )
        return None

    def unplug(self, identity: str, timeout: float) -> UnplugOutcome:
        """Asks the guest to let go and waits for QEMU to have removed the device."""
        with self._lock:
            if identity not in self._plugged:
                raise IolaneError(
                    f"no device {identity} is plugged in",
                    remedy=f"there are: {', '.join(self._plugged) or 'none'}",
                )
            if why := self.why_not_unplug(identity):
                raise IolaneError(f"unplugging {identity} is refused: {why[0]}", remedy=why[1])
            mark = self._qmp.mark()
            self._ask(identity)
            event = self._qmp.wait_event(
                {"DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"},
                mark,
                patient(timeout),
                lambda event: event.get("data", {}).get("device") == identity,
            )
            if event is None:
                self._leaving.add(identity)
                return UnplugOutcome.NO_ANSWER
            if event["event"] == "DEVICE_UNPLUG_GUEST_ERROR":
                self._leaving.discard(identity)
                return UnplugOutcome.REFUSED
            self._removed(identity)
            return UnplugOutcome.AGREED

    def _ask(self, identity: str) -> None:
        try:
            self._qmp.execute("device_del", id=identity)
        except QmpError as error:
            if not any(said in error.message for said in _BUSY):
                raise

    def deleted(self, identity: str) -> bool:
        """QEMU has removed a device, and nobody waits for it: asked for earlier, or the guest's own doing.
        Whether it was one of ours."""
        with self._lock:
            if identity not in self._plugged:
                return False
            with contextlib.suppress(QmpLostError):  # QEMU is gone, and with it what is to be forgotten
                self._removed(identity)
            return True

    def _removed(self, identity: str) -> None:
        device = self._plugged.pop(identity)
        self._leaving.discard(identity)
        self._with_msix.discard(identity)
        device.forget(self._qmp)
        if isinstance(device, VfioUserDevice):
            self._guard.forget(identity)

    def close(self) -> None:
        """Lets go of the servers."""
        self._guard.close()

    def has_msix(self, identity: str) -> bool:
        """Whether the device presents MSI-X: QEMU then owns memory regions for its table."""
        path = f"/machine/peripheral/{identity}"
        properties = self._qmp.execute("qom-list", path=path)
        return any(entry["name"].startswith("msix-table") for entry in properties)

    def refuse_migration(self) -> None:
        """QEMU's vfio-user-pci neither migrates its state nor blocks the migration; a frail front end blocks
        it; a physical function stays where it is.
        """
        blocking = [
            device.id for device in self.plugged if isinstance(device, VhostUserDevice) and device.frail
        ]
        if blocking:
            raise IolaneError(
                f"migrating is refused: QEMU's front end of {', '.join(blocking)} does not migrate",
                remedy="unplug it first, and plug it again on the other side",
            )
        lost = [device.id for device in self.plugged if isinstance(device, VfioUserDevice)]
        if lost:
            raise IolaneError(
                f"migrating is refused: QEMU would silently drop the state of {', '.join(lost)}",
                remedy="unplug these devices first, or shut the guest down and start it on the other side",
            )
        held = [f"{each.id} ({each.address})" for each in self.plugged if isinstance(each, VfioPciDevice)]
        if held:
            raise IolaneError(
                f"migrating is refused: the physical function {', '.join(held)} can't move",
                remedy="unplug it first, and plug one in on the other side",
            )

    # -- device servers -----------------------------------------------------------------------------------

    @staticmethod
    def tells_of_dead_server(line: str) -> bool:
        """Whether this line of QEMU's messages says that some server has gone."""
        return any(message in line for message in _DEATH_MESSAGES)

    def look_after(self, line: str) -> list[DeadServer]:
        """Takes a line of QEMU's messages; the servers that it shows to have gone, each told of once."""
        if "timed out waiting for reply" in line:
            self._guard.release_abandoned()
        return self.newly_dead() if self.tells_of_dead_server(line) else []

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
        return [
            DeadServer(device, device.id not in self._with_msix)
            for device in self.plugged
            if not isinstance(device, VfioPciDevice)
            and (isinstance(device, VfioUserDevice) or device.frail)
            and str(device.socket.absolute()) not in alive
        ]

    def refuse_reset(self) -> None:
        """QEMU 11.1.3 aborts when it resets a vfio-user device whose server has gone, and when the guest's
        driver starts a frail one then (`vhost_dev_start: Assertion 'hdev->vhost_ops'`).
        """
        if dead := self.dead_servers():
            names = ", ".join(each.device.id for each in dead)
            raise IolaneError(
                f"resetting is refused: the server of {names} has gone, and "
                "QEMU aborts when it resets such a device",
                remedy=dead[0].recovery,
            )
