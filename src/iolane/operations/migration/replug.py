"""A device of the emulated lane, which QEMU does not move: it leaves the guest before the machine moves, and
comes back on the other side with the state that it had.

What the guest's driver does at an unplug is done by it (an NVMe disk is shut down, its queues are deleted);
everything that the device keeps beside that comes along: counters, logs, registers.
"""

from __future__ import annotations

from iolane.devices.registry import VIRTIO, resolve, resolve_virtio
from iolane.devices.specification import parse
from iolane.errors import IolaneError
from iolane.model.virtio import VirtioDevice
from iolane.model.virtio.pci import VirtioPci
from iolane.operations.migration.disk_use import DiskUse, look, refuse_in_use
from iolane.operations.migration.machine_in_move import MachineInMove
from iolane.operations.migration.moved_device import Departed
from iolane.operations.migration.state_file import keep, with_state
from iolane.uapi.virtio import DeviceType

UNPLUG_S = 60.0
"""How long the guest may take to let go."""
MASS_STORAGE = 0x01
"""Base class code of disks (PCI Code and ID Assignment, 1.2)."""


def bears_disk(text: str) -> bool:
    """Whether the guest sees a disk in the device that a user wrote; what is not known may be one."""
    specification = parse(text)
    if specification.name in VIRTIO:
        return resolve_virtio(specification.name).device_type is DeviceType.BLOCK
    kind = resolve(specification.name) if specification.name else VirtioPci
    if issubclass(kind, VirtioDevice):
        return kind.device_type is DeviceType.BLOCK
    return issubclass(kind, VirtioPci) or kind.class_code >> 16 == MASS_STORAGE


class ReplugDevice:
    """One device at the source.

    Args:
        machine: runs here.
        name: the device's id.
        text: what its user wrote, with absolute paths.
        port: the root port that it is behind.
        timeout: seconds for the guest to let go of it.
    """

    def __init__(
        self, machine: MachineInMove, name: str, text: str, port: str | None, *, timeout: float = UNPLUG_S
    ) -> None:
        self.name = name
        self._machine = machine
        self._text = with_state(text, None)
        self._port = port
        self._timeout = timeout
        self._disk = bears_disk(text)
        self._elsewhere = parse(text).socket is not None
        self._state = b""

    def check(self) -> None:
        """Refuse what the engine can't unplug, what others serve, and a disk that the guest uses."""
        if self._elsewhere:
            raise IolaneError(
                f"{self.name} is served by another process, which keeps its state",
                remedy=f"unplug {self.name} first, and plug it in on the other side",
            )
        if (reason := self._machine.why_not_unplug(self.name)) is not None:
            raise IolaneError(
                f"{self.name} can't be taken out of the machine: {reason}",
                remedy="give it to the machine with presentation=msi",
            )
        if self._disk:
            refuse_in_use(self.name, self._disk_use(release=False))

    def before(self) -> Departed:
        """Take it out, and end its server, so that the other side can have its image."""
        if self._disk:
            refuse_in_use(self.name, self._disk_use(release=True))
        self._machine.take_out(self.name, self._timeout).require(self.name)
        try:
            self._state = self._machine.saved(self.name)
        except IolaneError:
            self._machine.put_back(self.name)
            raise
        self._machine.end(self.name)
        return Departed(name=self.name, port=self._port, state=self._state)

    def rollback(self) -> None:
        """Make it anew with the state that it had, and plug it in."""
        left = Departed(name=self.name, port=self._port, state=self._state)
        come_back(self._machine, self._text, left)

    def _disk_use(self, *, release: bool) -> DiskUse:
        """With `release`, multipath may let go of it. A multipath's users are its own, not the disk's."""
        try:
            return look(self._machine, self._machine.guest_address(self.name), release=release)
        except IolaneError as error:
            raise IolaneError(
                f"whether the guest uses {self.name} is not known: {error.message}",
                remedy=f"unplug it first: iolane unplug MACHINE {self.name}",
            ) from error


def come_back(machine: MachineInMove, text: str, departed: Departed) -> None:
    """Make a device that left of its `text` and plug it in, with its state.

    Raises:
        IolaneError: it can't be made, or plugged in; names the file in which its state is kept.
    """
    if departed.state is None:
        raise IolaneError("it came without its state")
    file = keep(departed.name, departed.state)
    with_file = with_state(text, file)
    try:
        machine.plug(with_file, departed.port)
    except IolaneError as error:
        raise IolaneError(
            f"{error.message}; its state is kept in {file}", remedy=f"iolane plug MACHINE '{with_file}'"
        ) from error
    file.unlink(missing_ok=True)
