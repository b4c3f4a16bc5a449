"""Feature bits of the console device (virtio 1.3, 5.3.3)."""

from __future__ import annotations

from enum import IntEnum


class ConsoleFeature(IntEnum):
    """VIRTIO_CONSOLE_F_*."""

    SIZE = 0
    MULTIPORT = 1
    EMERG_WRITE = 2
