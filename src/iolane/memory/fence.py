"""Order between our accesses to shared memory and those of its other users."""

from iolane.memory._fence import fence

__all__ = ["fence"]
