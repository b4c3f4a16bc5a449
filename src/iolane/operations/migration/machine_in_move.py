"""What devices that do not move along need of the machine that does."""

from __future__ import annotations

from typing import Protocol

from iolane.engines.outcome import UnplugOutcome
from iolane.model.pci import PcieId
from iolane.operations.migration.disk_use import Answer


class MachineInMove(Protocol):
    """A machine that runs. Errors are IolaneError."""

    def run(self, command: str, *, timeout: float) -> Answer:
        """Run a shell command in the guest."""

    def guest_address(self, identity: str) -> PcieId:
        """Where the guest finds a device."""

    def why_not_unplug(self, identity: str) -> str | None:
        """Why the engine refuses to unplug a device; None where it does not."""

    def take_out(self, identity: str, timeout: float) -> UnplugOutcome:
        """Unplug a device; its server goes on, and its function stays taken."""

    def put_back(self, identity: str) -> None:
        """Plug in what `take_out` took out, as it is now."""

    def saved(self, identity: str) -> bytes:
        """The state of a device that was taken out."""

    def end(self, identity: str) -> None:
        """End the server of a device that was taken out, and free its image."""

    def plug(self, text: str, port: str | None) -> None:
        """Make a device and plug it in."""

    def plug_passed(self, text: str, port: str | None) -> None:
        """Take a function of this host and plug it in."""
