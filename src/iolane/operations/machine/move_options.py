"""What a machine's owner may choose about its move to another host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MoveOptions:
    """The options of `Machine.migrate`, which says what they mean."""

    downtime: float | None = None
    bandwidth: int = 0
    tls: Path | None = None
    replug: bool = False
    dry_run: bool = False
