"""Feature bits of the network device (virtio 1.3, 5.1.3)."""

from __future__ import annotations

from enum import IntEnum

from iolane.backends.net import Offload
from iolane.model.virtio.features import mask


class NetFeature(IntEnum):
    """VIRTIO_NET_F_*."""

    CSUM = 0
    GUEST_CSUM = 1
    CTRL_GUEST_OFFLOADS = 2
    MTU = 3
    MAC = 5
    GUEST_TSO4 = 7
    GUEST_TSO6 = 8
    GUEST_ECN = 9
    GUEST_UFO = 10
    HOST_TSO4 = 11
    HOST_TSO6 = 12
    HOST_ECN = 13
    HOST_UFO = 14
    MRG_RXBUF = 15
    STATUS = 16
    CTRL_VQ = 17
    CTRL_RX = 18
    CTRL_VLAN = 19
    CTRL_RX_EXTRA = 20
    GUEST_ANNOUNCE = 21
    MQ = 22
    CTRL_MAC_ADDR = 23


HOST_OFFLOADS = {
    Offload.CSUM: NetFeature.CSUM,
    Offload.TSO4: NetFeature.HOST_TSO4,
    Offload.TSO6: NetFeature.HOST_TSO6,
    Offload.TSO_ECN: NetFeature.HOST_ECN,
}
"""What the driver may leave to the device."""
GUEST_OFFLOADS = {
    Offload.CSUM: NetFeature.GUEST_CSUM,
    Offload.TSO4: NetFeature.GUEST_TSO4,
    Offload.TSO6: NetFeature.GUEST_TSO6,
    Offload.TSO_ECN: NetFeature.GUEST_ECN,
}
"""What the device may leave to the driver; by these bits CTRL_GUEST_OFFLOADS names them, too (5.1.6.5.8)."""
GUEST_OFFLOAD_MASK = mask(GUEST_OFFLOADS.values())

_F = NetFeature
_TSO = (_F.HOST_TSO4, _F.HOST_TSO6)
_GUEST_TSO = (_F.GUEST_TSO4, _F.GUEST_TSO6)
REQUIRED: dict[NetFeature, tuple[NetFeature, ...]] = {
    _F.GUEST_TSO4: (_F.GUEST_CSUM,),
    _F.GUEST_TSO6: (_F.GUEST_CSUM,),
    _F.GUEST_ECN: _GUEST_TSO,
    _F.HOST_TSO4: (_F.CSUM,),
    _F.HOST_TSO6: (_F.CSUM,),
    _F.HOST_ECN: _TSO,
}
"""A feature needs one of these (5.1.3.1)."""
OF_CONTROL_QUEUE = (
    _F.CTRL_RX,
    _F.CTRL_VLAN,
    _F.CTRL_RX_EXTRA,
    _F.GUEST_ANNOUNCE,
    _F.MQ,
    _F.CTRL_MAC_ADDR,
    _F.CTRL_GUEST_OFFLOADS,
)
"""What needs the control queue."""


def offload_features(offloads: Offload) -> int:
    """The features that a back end's offloads allow, both ways."""
    tables = (HOST_OFFLOADS, GUEST_OFFLOADS)
    return mask(feature for table in tables for offload, feature in table.items() if offload & offloads)


def guest_offloads(features: int) -> Offload:
    """What the device may leave to the driver, by features."""
    found = Offload(0)
    for offload, feature in GUEST_OFFLOADS.items():
        if features >> feature & 1:
            found |= offload
    return found


def makes_sense(features: int, *, control_queue: bool) -> bool:
    """Whether every feature has those that it needs (5.1.3.1).

    Args:
        control_queue: it is here. Else it is the front end's, whose features are not shown here.
    """
    needed = dict(REQUIRED)
    if control_queue:
        needed |= dict.fromkeys(OF_CONTROL_QUEUE, (_F.CTRL_VQ,))
    return all(
        not features >> feature & 1 or any(features >> other & 1 for other in others)
        for feature, others in needed.items()
    )
