"""What a console remembers beside its queues."""

from __future__ import annotations

from typing import Annotated

import msgspec

from iolane.model.virtio import VirtioState

Count = Annotated[int, msgspec.Meta(ge=0)]
U16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
NAME_LIMIT = 256
CONTROL_LIMIT = 1024
"""Control messages kept for a driver that gives no buffers."""
ControlMessage = Annotated[bytes, msgspec.Meta(max_length=8 + NAME_LIMIT)]


class PortState(msgspec.Struct, forbid_unknown_fields=True):
    """One port.

    Attributes:
        pending: input that was taken from the stream and did not fit into the guest's buffers.
        sent: bytes of the oldest chain in flight that the stream has taken.
    """

    index: Count
    name: str = ""
    console: bool = False
    ready: bool = False
    guest_open: bool = False
    host_open: bool = False
    pending: bytes = b""
    sent: Count = 0


class ConsoleState(VirtioState):
    """Ports, size and the control messages that wait for buffers."""

    ports: list[PortState] = msgspec.field(default_factory=list)
    control: Annotated[list[ControlMessage], msgspec.Meta(max_length=CONTROL_LIMIT)] = msgspec.field(
        default_factory=list
    )
    driver_ready: bool = False
    columns: U16 = 0
    rows: U16 = 0
