"""How long is long here. Limits against a hang are made for a machine that runs guests at their usual pace;
on one that is known to be slower, as the lab's emulated host, IOLANE_PATIENCE says how far to stretch them.

A time limit that a caller chose for a command of their own is kept as it is.
"""

from __future__ import annotations

import os

from iolane.errors import IolaneError

VARIABLE = "IOLANE_PATIENCE"
GREATEST = 1000.0


def patience() -> float:
    """The factor: IOLANE_PATIENCE, from 1 to 1000, by default 1. Raises IolaneError for another value."""
    text = os.environ.get(VARIABLE)
    if not text:
        return 1.0
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 1.0 <= factor <= GREATEST:
        raise IolaneError(f"{VARIABLE}={text} is not a factor from 1 to {GREATEST:g}", remedy="unset it")
    return factor


def patient(seconds: float) -> float:
    """A limit of `seconds` on this machine."""
    return seconds * patience()
