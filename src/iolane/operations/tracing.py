"""What to trace, as the user writes it: `LEVEL[,GLOB]`."""

from __future__ import annotations

import msgspec

from iolane.devices.specification import suggestion
from iolane.errors import IolaneError

LEVELS = ("off", "counters", "registers", "fields")


class TraceRequest(msgspec.Struct, frozen=True):
    """A level of the trace ladder and the registers it is for."""

    level: str
    registers: str | None = None
    """A glob over names such as `bar0.CONTROL`; None for all."""


def parse_trace(text: str) -> TraceRequest:
    """Take `fields,bar0.*` apart; raises IolaneError in one line."""
    level, _, registers = text.partition(",")
    if level not in LEVELS:
        raise IolaneError(f"no trace level is called '{level}'", remedy=suggestion(level, LEVELS))
    return TraceRequest(level, registers or None)
