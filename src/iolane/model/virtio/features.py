"""Feature bits that belong to no kind of device in particular (virtio 1.3, 6)."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class Feature(IntEnum):
    """Bit numbers of the reserved features."""

    INDIRECT_DESC = 28
    EVENT_IDX = 29
    VERSION_1 = 32
    ACCESS_PLATFORM = 33
    RING_PACKED = 34
    IN_ORDER = 35
    ORDER_PLATFORM = 36
    SR_IOV = 37
    NOTIFICATION_DATA = 38
    NOTIF_CONFIG_DATA = 39
    RING_RESET = 40
    ADMIN_VQ = 41


FEATURE_BITS = 64
"""Feature bits that this version of the specification uses."""


def mask(features: Iterable[int]) -> int:
    """The features as the mask that drivers read and write."""
    value = 0
    for feature in features:
        value |= 1 << feature
    return value


BASE_FEATURES = mask((Feature.VERSION_1, Feature.INDIRECT_DESC, Feature.EVENT_IDX))
"""What every device here offers over every carrier."""
