"""The compiled data plane of virtqueues. See `_ring.pyx`."""

from iolane.memory._ring import (
    BAD_INDEX,
    BROKEN_MEMORY,
    CHAIN,
    HEAD_IN_FLIGHT,
    TURN,
    BlockPath,
    CompiledQueue,
    NetPath,
    NetPort,
    RegionTable,
)

CompiledPath = BlockPath | NetPath
"""What compiled code may do of a queue by itself."""

__all__ = [
    "BAD_INDEX",
    "BROKEN_MEMORY",
    "CHAIN",
    "HEAD_IN_FLIGHT",
    "TURN",
    "BlockPath",
    "CompiledPath",
    "CompiledQueue",
    "NetPath",
    "NetPort",
    "RegionTable",
]
