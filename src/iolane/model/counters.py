"""Counts by name."""

from __future__ import annotations


class Counters(dict[str, int]):
    """Counts that only grow, by name; what was never counted is 0. Changed under the device's lock."""

    def __missing__(self, name: str) -> int:
        return 0

    def add(self, name: str, count: int = 1) -> None:
        """Count `count` more of `name`."""
        self[name] = self[name] + count

    def snapshot(self) -> dict[str, int]:
        """A copy in order of name."""
        return dict(sorted(self.items()))
