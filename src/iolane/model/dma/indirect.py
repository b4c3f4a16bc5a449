"""Memory that is only reachable by asking its owner: vfio-user's message DMA."""

from __future__ import annotations

from typing import Protocol


class IndirectAccess(Protocol):
    """Reaches memory that can't be mapped, by asking its owner. Refused: IolaneError or OSError."""

    def read(self, iova: int, length: int) -> bytes: ...
    def write(self, iova: int, data: bytes) -> None: ...
