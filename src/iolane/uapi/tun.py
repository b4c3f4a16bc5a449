"""Taps (linux/if_tun.h, linux/if.h). A test compares the numbers with the headers."""

from __future__ import annotations

import struct
from enum import IntFlag

IFNAMSIZ = 16
IFREQ = struct.Struct("16sH22x")
"""struct ifreq with ifr_flags"""


class TunFlag(IntFlag):
    """IFF_*: flags of TUNSETIFF and TUNSETQUEUE."""

    TAP = 0x0002
    MULTI_QUEUE = 0x0100
    ATTACH_QUEUE = 0x0200
    DETACH_QUEUE = 0x0400
    PERSIST = 0x0800
    NO_PI = 0x1000
    VNET_HDR = 0x4000


class Offload(IntFlag):
    """TUN_F_*: what the reader of a tap takes; here also what any network back end can do."""

    CSUM = 0x01
    TSO4 = 0x02
    TSO6 = 0x04
    TSO_ECN = 0x08


TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNSETOFFLOAD = 0x400454D0
TUNGETIFF = 0x800454D2
TUNSETVNETHDRSZ = 0x400454D8
TUNSETQUEUE = 0x400454D9
TUNSETVNETLE = 0x400454DC
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 1
