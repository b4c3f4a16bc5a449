"""One wish to trace: how much, of what, to whom."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, Literal

from iolane.model.dma import Direction
from iolane.model.trace.events import RegisterAccess, TraceEvent
from iolane.model.trace.level import TraceLevel
from iolane.model.trace.names import NameFilter


class Drop(Enum):
    """The type of `DROP`."""

    DROP = "drop"


DROP: Final[Literal[Drop.DROP]] = Drop.DROP
"""What a hook returns to drop a write, or to answer a read with all bits set, as if no device were there."""

Hook = Callable[[RegisterAccess], "int | Drop | None"]
"""Sees an access. For a read it is called with the device's answer, for a write before the device gets it.
Returns None to leave the access alone, another value for it, or `DROP`."""
Sink = Callable[[TraceEvent], object]
"""Takes events, under the device's lock: it must not wait."""


class Session:
    """A level with its filter, sink and hook."""

    def __init__(
        self,
        level: TraceLevel,
        registers: str | None = None,
        direction: Direction | str | None = None,
        sink: Sink | None = None,
        hook: Hook | None = None,
    ) -> None:
        self.level = level
        self.wants = NameFilter(registers)
        self.direction = None if direction is None else Direction(direction)
        self.sink = sink
        self.hook = hook

    def watches(self, names: list[str], direction: Direction) -> bool:
        """Whether it is told of accesses to registers of these names."""
        if self.level < TraceLevel.REGISTERS or self.direction not in (None, direction):
            return False
        return any(self.wants(name) for name in names)
