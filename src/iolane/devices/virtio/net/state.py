"""What a network device remembers beside its queues."""

from __future__ import annotations

from typing import Annotated

import msgspec

from iolane.backends.net import LARGEST_FRAME
from iolane.devices.virtio.net.filter import MacAddress, ReceiveFilter
from iolane.model.virtio import VirtioState
from iolane.uapi.virtio_net import CTRL_MQ_VQ_PAIRS_MAX, HEADER

Pairs = Annotated[int, msgspec.Meta(ge=1, le=CTRL_MQ_VQ_PAIRS_MAX)]
Packet = Annotated[bytes, msgspec.Meta(max_length=HEADER.size + LARGEST_FRAME)]


class NetState(VirtioState):
    """Addresses, filters and modes.

    Attributes:
        mac: the address that the driver may have set.
        max_pairs: queue pairs that there are.
        pairs: queue pairs in use.
        mtu: as offered, 0 for none.
        offloads: what is left to the driver, as CTRL_GUEST_OFFLOADS names it.
        announce: the driver was asked to announce itself, and has not acknowledged it.
        pending: by queue pair, a packet that waits for buffers; empty for none.
    """

    mac: MacAddress = bytes(6)
    max_pairs: Pairs = 1
    pairs: Pairs = 1
    mtu: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)] = 0
    offloads: Annotated[int, msgspec.Meta(ge=0)] = 0
    announce: bool = False
    filter: ReceiveFilter = msgspec.field(default_factory=ReceiveFilter)
    pending: list[Packet] = msgspec.field(default_factory=list)
