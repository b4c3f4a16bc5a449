"""What a virtio device remembers beside its configuration registers."""

from __future__ import annotations

from typing import Annotated

import msgspec

from iolane.model.state import DeviceState

U16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]


class QueueState(msgspec.Struct, forbid_unknown_fields=True):
    """One virtqueue: what the driver set, and how far device and driver have come.

    Attributes:
        in_flight: heads of chains that were taken and not given back, in the order in which they were taken.
    """

    size: U16 = 0
    descriptors: Annotated[int, msgspec.Meta(ge=0)] = 0
    available: Annotated[int, msgspec.Meta(ge=0)] = 0
    used: Annotated[int, msgspec.Meta(ge=0)] = 0
    enabled: bool = False
    running: bool = False
    rejection: str | None = None
    last_available: U16 = 0
    used_index: U16 = 0
    in_flight: list[U16] = msgspec.field(default_factory=list)


class VirtioState(DeviceState):
    """Status, features and queues. Kinds of devices derive from it and add their own."""

    status: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0
    driver_features: Annotated[int, msgspec.Meta(ge=0)] = 0
    acknowledged: Annotated[int, msgspec.Meta(ge=0)] = 0
    generation: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0
    queues: list[QueueState] = msgspec.field(default_factory=list)
