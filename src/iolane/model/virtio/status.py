"""The device status field (virtio 1.3, 2.1)."""

from __future__ import annotations

from enum import IntFlag


class Status(IntFlag):
    """How far driver and device have come with each other."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


DRIVER_BITS = Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK | Status.FEATURES_OK | Status.FAILED
"""What the driver may set; NEEDS_RESET is the device's."""
