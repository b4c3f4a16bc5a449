"""What two iolane processes say to each other while a machine moves: one JSON object a line.

The source speaks first; what either may say when is in `source` and `destination`. The other side is not
trusted: a line is bounded, and every field is checked where it enters.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from iolane.operations.migration.moved_device import Departed
from iolane.operations.migration.offer import DEVICES, Finding, Offer

PROTOCOL = 1
LINE_LIMIT = 16 << 20
"""A longer message ends the connection; the longest ones have devices' states in them."""

Identity = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
"""Of one move: 128 random bits, which also are what one must know to ask about it."""
Text = Annotated[str, msgspec.Meta(max_length=4000)]
Amount = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class Said(msgspec.Struct, frozen=True, tag_field="say", forbid_unknown_fields=True):
    """The base of all messages."""


class Hello(Said, frozen=True, tag="hello", kw_only=True):
    """The source: this machine would like to come. `dry_run`: it only asks whether it may."""

    protocol: int
    version: Annotated[str, msgspec.Meta(max_length=100)]
    id: Identity
    offer: Offer
    dry_run: bool = False


class Accepted(Said, frozen=True, tag="accepted"):
    """The destination: it may come."""

    notes: Annotated[list[Text], msgspec.Meta(max_length=100)] = []


class Refused(Said, frozen=True, tag="refused"):
    """The destination: it may not, and why; every reason at once."""

    findings: Annotated[list[Finding], msgspec.Meta(min_length=1, max_length=100)]


class Prepare(Said, frozen=True, tag="prepare"):
    """The source: make a machine for it, with images and networks as they are now."""


class Ready(Said, frozen=True, tag="ready"):
    """The destination: its machine waits. The stream is a connection of its own, which shows this token."""

    token: Identity


class Brings(Said, frozen=True, tag="brings"):
    """The source: devices that were taken out of the machine, to be put in again when it runs there."""

    devices: Annotated[list[Departed], msgspec.Meta(max_length=DEVICES)]


class Moving(Said, frozen=True, tag="moving"):
    """The source: how far it is. Also a sign of life."""

    transferred: Amount
    remaining: Amount
    total: Amount
    estimate: float | None = None


class Arrived(Said, frozen=True, tag="arrived"):
    """The destination: all of the machine is here, and it stands still until it hears Commit."""


class Commit(Said, frozen=True, tag="commit"):
    """The source: it stands still here for good; the destination's runs from now on."""


class Running(Said, frozen=True, tag="running"):
    """The destination: it runs here, as far as it ran at all."""


class NotRunning(Said, frozen=True, tag="not-running"):
    """The destination: it does not run here, and never will."""

    reason: Text


class Abort(Said, frozen=True, tag="abort"):
    """The source: it stays; the destination's is to be thrown away."""

    reason: Text


class Ask(Said, frozen=True, tag="ask"):
    """The source, on a new connection after the link was cut: what became of the move?

    The answer is Arrived, Running or NotRunning.
    """

    id: Identity


FromSource = Hello | Prepare | Brings | Moving | Commit | Abort | Ask
FromDestination = Accepted | Refused | Ready | Arrived | Running | NotRunning
