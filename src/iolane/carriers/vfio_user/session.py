"""What the commands of one connection share."""

from __future__ import annotations

from struct import Struct
from typing import Any

from iolane.carriers.descriptors import close_all
from iolane.carriers.vfio_user.protocol import MigrationState
from iolane.carriers.vfio_user.rejection import RefusedError, Rejection, Statistics
from iolane.carriers.vfio_user.version import Peer
from iolane.model.pci import ServedFunction
from iolane.model.region import Region, RegionIndex

STOPPED_STATES = frozenset(
    {MigrationState.ERROR, MigrationState.STOP, MigrationState.STOP_COPY, MigrationState.RESUMING}
)


class Request:
    """A command from the client. Descriptors that no handler takes are closed behind it."""

    __slots__ = ("command", "fds", "flags", "id", "payload")

    def __init__(
        self, message_id: int, command: int, flags: int, payload: bytes | memoryview, fds: list[int]
    ) -> None:
        self.id = message_id
        self.command = command
        self.flags = flags
        self.payload = payload
        self.fds = fds

    def unpack(self, layout: Struct, *, exact: bool = False) -> tuple[Any, ...]:
        """The fixed part of the payload. Refused if it is shorter, or with `exact` longer."""
        length = len(self.payload)
        if length < layout.size or (exact and length != layout.size):
            raise RefusedError(
                Rejection.PAYLOAD_SIZE, f"command {self.command} has {length} bytes, not {layout.size}"
            )
        return layout.unpack_from(self.payload)

    def take_fd(self) -> int:
        """The next descriptor; whoever takes it closes it."""
        return self.fds.pop(0)

    def close(self) -> None:
        """Close what was not taken."""
        close_all(self.fds)
        self.fds = []


class Reply:
    """What goes back: the payload, and descriptors. Those stay ours, unless `given` says to close them
    behind it.
    """

    __slots__ = ("fds", "given", "payload")

    def __init__(self, payload: bytes = b"", fds: tuple[int, ...] = (), *, given: bool = False) -> None:
        self.payload = payload
        self.fds = fds
        self.given = given

    def close(self) -> None:
        """Close what was given."""
        if self.given:
            close_all(self.fds)


class Session:
    """The device and the state of one connection that several nouns need."""

    def __init__(self, device: ServedFunction, statistics: Statistics) -> None:
        self.device = device
        self.statistics = statistics
        self.peer = Peer()
        self.state = MigrationState.RUNNING
        self.open_regions: dict[int, Region] = {}
        """Regions whose reads and writes need no look at the state: all while the device runs, and none
        before the client negotiated.
        """

    def region(self, index: int) -> Region | None:
        """The region of `index`, None where the function has none. Refused if there is no such index."""
        regions = self.device.regions
        if index >= len(regions):
            raise RefusedError(Rejection.REGION_INDEX, f"{index}")
        return regions[index]

    def enter(self, state: MigrationState) -> None:
        """Another migration state."""
        self.state = state
        self.open_regions.clear()
        if state not in STOPPED_STATES:
            present = (region for region in self.device.regions if region is not None)
            self.open_regions.update({int(region.index): region for region in present})

    def check_writable(self, region: Region) -> None:
        """Refuse a write that would let a stopped device run. Config space stays open but for STOP_COPY.

        QEMU restores the config space of a migrated device in the RESUMING state.
        """
        if self.state not in STOPPED_STATES:
            return
        if region.index is not RegionIndex.CONFIG or self.state is MigrationState.STOP_COPY:
            raise RefusedError(Rejection.DEVICE_STOPPED, f"write to {region.name} in state {self.state.name}")
