"""Devices that the engine does not move with the machine: taken out before it, put in again at the other
side.

The source has a `MovedDevice` for each, in its order:

    check       preflight: nothing has been changed yet
    before      the machine runs here: the device is taken out; what is told of it goes to the other side
    rollback    the machine stays here: the device is put in again, as it was

and the destination, when the machine runs there, puts each `Departed` in again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import msgspec

from iolane.errors import IolaneError

STATES_LIMIT = 8 << 20
"""Bytes that the states of all devices may have together: they go over in one message."""

_log = logging.getLogger("iolane.migration")


class Departed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device on its way, as the source tells the destination of it."""

    name: str
    """Its id in the machine."""
    port: str | None = None
    """The root port that it was behind, and will be."""
    state: bytes | None = None
    """What it was when it left (`PciDevice.bring_back`)."""
    mac: str | None = None
    """Of a network function: the address that the other side's must have."""


class MovedDevice(Protocol):
    """One device at the source."""

    @property
    def name(self) -> str:
        """Its id in the machine."""

    def check(self) -> None:
        """Refuse, with the way out, what would not work. Changes nothing. Raises IolaneError."""

    def before(self) -> Departed:
        """Take it out of the machine, which runs. Raises IolaneError; the device is then as it was before."""

    def rollback(self) -> None:
        """Put it in again, as it was: the machine stays. Called once after a `before` that returned."""


class MovedDevices:
    """All of them at the source: taken out together, or none."""

    def __init__(self, devices: Sequence[MovedDevice]) -> None:
        self._devices = list(devices)
        self._out: list[MovedDevice] = []

    @property
    def names(self) -> list[str]:
        """Their ids."""
        return [device.name for device in self._devices]

    def check(self) -> None:
        """The preflight of each. Raises IolaneError for the first that refuses."""
        for device in self._devices:
            device.check()

    def before(self) -> list[Departed]:
        """Take out one after the other. Where one can't be, those that are out are put in again.

        Raises:
            IolaneError: why it can't; every device is in the machine as before, or named.
        """
        departed: list[Departed] = []
        try:
            for device in self._devices:
                departed.append(device.before())
                self._out.append(device)
            if sum(len(each.state or b"") for each in departed) > STATES_LIMIT:
                raise IolaneError(
                    f"the states of the devices have more than {STATES_LIMIT >> 20} MiB",
                    remedy="unplug the largest first, and plug it in on the other side",
                )
        except BaseException as error:
            lost = "; ".join(str(each) for each in self.rollback())
            if lost and isinstance(error, IolaneError):
                raise IolaneError(f"{error.message}; and {lost}", remedy=error.remedy) from error
            raise
        return departed

    def rollback(self) -> list[IolaneError]:
        """Put in again what is out, last first. One that fails keeps no other from it; returned is why."""
        problems = []
        while self._out:
            device = self._out.pop()
            try:
                device.rollback()
            except IolaneError as error:
                _log.error("%s did not come back: %s", device.name, error)
                problems.append(
                    IolaneError(f"{device.name} did not come back: {error.message}", remedy=error.remedy)
                )
        return problems
