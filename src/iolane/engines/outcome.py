"""How the guest answered when it was asked to let go of a device."""

from __future__ import annotations

from enum import StrEnum

from iolane.errors import IolaneError


class UnplugOutcome(StrEnum):
    """The three ends of an unplug."""

    AGREED = "agreed"
    """The guest let go, and the engine has removed the device."""
    REFUSED = "refused"
    """The guest said no. The device is plugged in as before."""
    NO_ANSWER = "no-answer"
    """Not within the limit. The guest may still let go: that is noticed later, and told as an event."""

    def require(self, identity: str) -> None:
        """Return when the guest agreed, else raise IolaneError with the way out."""
        if self is UnplugOutcome.REFUSED:
            raise IolaneError(
                f"the guest refuses to let go of {identity}", remedy="stop using it in the guest"
            )
        if self is UnplugOutcome.NO_ANSWER:
            raise IolaneError(
                f"the guest did not let go of {identity} in time",
                remedy="is the guest up, and does its driver let go? unplug again to go on waiting",
            )
