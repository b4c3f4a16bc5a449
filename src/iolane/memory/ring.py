"""The compiled data plane of virtqueues. See `_ring.pyx`."""

from iolane.memory._ring import (
    BAD_INDEX,
    BROKEN_MEMORY,
    CHAIN,
    HEAD_IN_FLIGHT,
    BlockPath,
    CompiledQueue,
    RegionTable,
)

__all__ = [
    "BAD_INDEX",
    "BROKEN_MEMORY",
    "CHAIN",
    "HEAD_IN_FLIGHT",
    "BlockPath",
    "CompiledQueue",
    "RegionTable",
]
