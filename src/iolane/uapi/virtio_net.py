"""Numbers of virtio network devices (virtio 1.3, 5.1; linux/virtio_net.h). Members bear the header's names,
less the prefix that the class stands for. A test compares them with the header.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

HEADER = struct.Struct("<BBHHHHH")
"""struct virtio_net_hdr_v1: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers"""


class HeaderFlag(IntFlag):
    """VIRTIO_NET_HDR_F_*."""

    NEEDS_CSUM = 1
    DATA_VALID = 2


class Gso(IntEnum):
    """VIRTIO_NET_HDR_GSO_*: how a packet is to be cut into segments."""

    NONE = 0
    TCPV4 = 1
    UDP = 3
    TCPV6 = 4
    ECN = 0x80


class NetStatus(IntFlag):
    """VIRTIO_NET_S_*: the configuration's status (5.1.4)."""

    LINK_UP = 1
    ANNOUNCE = 2


class Ack(IntEnum):
    """VIRTIO_NET_*: how a command ended (5.1.6.5)."""

    OK = 0
    ERR = 1


class Control(IntEnum):
    """VIRTIO_NET_CTRL_*: classes of commands."""

    RX = 0
    MAC = 1
    VLAN = 2
    ANNOUNCE = 3
    MQ = 4
    GUEST_OFFLOADS = 5


class ControlRx(IntEnum):
    """VIRTIO_NET_CTRL_RX_* (5.1.6.5.1)."""

    PROMISC = 0
    ALLMULTI = 1
    ALLUNI = 2
    NOMULTI = 3
    NOUNI = 4
    NOBCAST = 5


class ControlMac(IntEnum):
    """VIRTIO_NET_CTRL_MAC_* (5.1.6.5.2)."""

    TABLE_SET = 0
    ADDR_SET = 1


class ControlVlan(IntEnum):
    """VIRTIO_NET_CTRL_VLAN_* (5.1.6.5.3)."""

    ADD = 0
    DEL = 1


CTRL_ANNOUNCE_ACK = 0
"""VIRTIO_NET_CTRL_ANNOUNCE_ACK (5.1.6.5.4)."""
CTRL_MQ_VQ_PAIRS_SET = 0
"""VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET (5.1.6.5.6)."""
CTRL_MQ_VQ_PAIRS_MAX = 0x8000
"""VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MAX."""
CTRL_GUEST_OFFLOADS_SET = 0
"""VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET (5.1.6.5.8)."""
