"""The network that a user names for a device."""

from __future__ import annotations

from collections.abc import Sequence

from iolane.backends.net import NetBackend, PasstNet, Tap, open_peer
from iolane.errors import IolaneError


def open_network(
    tap: str | None, peer: str | None, passt: bool, forward: Sequence[str], queues: int
) -> NetBackend:
    """The one network that is named. Raises IolaneError."""
    if (tap is not None) + (peer is not None) + passt != 1:
        raise IolaneError(
            "a network device needs one network", remedy="add tap=NAME, peer=unix:PATH or passt=on"
        )
    if forward and not passt:
        raise IolaneError("only passt forwards ports", remedy="add passt=on, or leave forward= out")
    if tap is not None:
        return Tap(tap, queues=queues)
    if peer is not None:
        return open_peer(peer)
    return PasstNet(forward=forward)
