"""How far a guest has moved, from QEMU's query-migrate, and how long the rest may take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

ENDED = frozenset({"completed", "failed", "cancelled"})


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """The source's figures at one moment. Sizes are bytes, times are seconds."""

    status: str = "none"
    """QEMU's MigrationStatus."""
    seconds: float = 0.0
    transferred: int = 0
    """What went over, repetitions included."""
    remaining: int = 0
    """What has not gone over since it was changed last."""
    total: int = 0
    """The guest's memory."""
    rate: float = 0.0
    """Bytes a second that go over."""
    dirty_rate: float = 0.0
    """Bytes a second that the guest and its devices change; 0 until the second pass."""
    passes: int = 0
    downtime: float = 0.0
    """How long the guest would stand still, and, once it has moved, stood still at the source."""
    slowed: float = 0.0
    """The share of time that its processors are made to wait, 0 to 1."""
    estimate: float | None = None
    """Seconds until it stands still for the last part; None while that is not in sight."""

    @property
    def done(self) -> float:
        """The share of memory that need not go over again, 0 to 1."""
        return 1 - self.remaining / self.total if self.total else 0.0


def progress(figures: Mapping[str, Any], downtime: float) -> Progress:
    """What query-migrate answered, for a downtime limit in seconds."""
    memory = figures.get("ram", {})
    rate = memory.get("mbps", 0.0) * 1e6 / 8
    dirty = memory.get("dirty-pages-rate", 0) * memory.get("page-size", 4096)
    remaining = memory.get("remaining", 0)
    status = figures.get("status", "none")
    return Progress(
        status=status,
        seconds=figures.get("total-time", 0) / 1000,
        transferred=memory.get("transferred", 0),
        remaining=remaining,
        total=memory.get("total", 0),
        rate=rate,
        dirty_rate=float(dirty),
        passes=memory.get("dirty-sync-count", 0),
        downtime=figures.get("downtime", figures.get("expected-downtime", 0)) / 1000,
        slowed=figures.get("cpu-throttle-percentage", 0) / 100,
        estimate=None if status in ENDED else seconds_left(remaining, rate, float(dirty), downtime),
    )


def seconds_left(remaining: int, rate: float, dirty_rate: float, downtime: float) -> float | None:
    """Until what remains can be sent within the downtime.

    Each second `rate` bytes go and `dirty_rate` come back, until `rate * downtime` are left.

    >>> seconds_left(300, 100.0, 50.0, 1.0)
    4.0
    >>> seconds_left(300, 100.0, 100.0, 1.0) is None
    True
    """
    more = remaining - rate * downtime
    if more <= 0:
        return 0.0 if rate else None
    return more / (rate - dirty_rate) if rate > dirty_rate else None
