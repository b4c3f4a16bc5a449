"""The vhost-user protocol: numbers, flags and layouts.

Names in quotes are section titles of the specification, docs/interop/vhost-user.rst in QEMU's repository.
"All numbers are in the machine native byte order"; iolane runs on little-endian hosts.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct


class Request(IntEnum):
    """ "Front-end message types"."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43


class BackendRequest(IntEnum):
    """ "Back-end message types"."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5


class ProtocolFeature(IntEnum):
    """ "Protocol features", bit numbers."""

    MQ = 0
    LOG_SHMFD = 1
    RARP = 2
    REPLY_ACK = 3
    MTU = 4
    BACKEND_REQ = 5
    CROSS_ENDIAN = 6
    CRYPTO_SESSION = 7
    PAGEFAULT = 8
    CONFIG = 9
    BACKEND_SEND_FD = 10
    HOST_NOTIFIER = 11
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    INBAND_NOTIFICATIONS = 14
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16
    XEN_MMAP = 17
    SHARED_OBJECT = 18
    DEVICE_STATE = 19
    GET_VRING_BASE_INFLIGHT = 20
    GPA_ADDRESSES = 21
    SHMEM = 22


class VhostFeature(IntEnum):
    """Feature bits of the carrier's own, in the mask of virtio's ("Migration", "Communication")."""

    LOG_ALL = 26
    PROTOCOL_FEATURES = 30


class HeaderFlag(IntFlag):
    """ "Header", flags. The two low bits are the version."""

    REPLY = 0x4
    NEED_REPLY = 0x8


VERSION = 1
VERSION_MASK = 0x3

HEADER = Struct("<III")
"""request, flags, size of the payload."""
HEADER_SIZE = HEADER.size
MAX_PAYLOAD = 4096
"""Longer than any message of the protocol; QEMU's longest has about 1300 bytes."""
MAX_FDS = 8
"""VHOST_MEMORY_BASELINE_NREGIONS: no message carries more descriptors."""
MAX_RECEIVED_FDS = 64
"""Room for a peer that sends more, so that they can be told apart from lost ones, and closed."""

U64 = Struct("<Q")
VRING_STATE = Struct("<II")
"""index, num."""
VRING_ADDRESS = Struct("<IIQQQQ")
"""index, flags, descriptor, used, available, log."""
MEMORY_HEADER = Struct("<II")
"""number of regions, padding."""
MEMORY_REGION = Struct("<QQQQ")
"""guest address, size, user address, mmap offset."""
SINGLE_REGION = Struct("<QQQQQ")
"""padding, then MEMORY_REGION."""
LOG = Struct("<QQ")
"""log size, log offset."""
CONFIG = Struct("<III")
"""offset, size, flags; the bytes follow."""
INFLIGHT = Struct("<QQHH")
"""mmap size, mmap offset, number of queues, queue size."""
DEVICE_STATE = Struct("<II")
"""direction, phase."""

BASELINE_REGIONS = 8
"""VHOST_MEMORY_BASELINE_NREGIONS: regions in one SET_MEM_TABLE."""
MAX_MEMORY_SLOTS = 509
"""What GET_MAX_MEM_SLOTS says: KVM's number of user memory slots on x86."""
MAX_CONFIG_SIZE = 256
"""VHOST_USER_MAX_CONFIG_SIZE."""
VRING_INDEX_MASK = 0xFF
VRING_NO_FD = 0x100
"""SET_VRING_KICK, _CALL and _ERR: no descriptor comes with it. Also in the reply to SET_DEVICE_STATE_FD."""
VRING_FLAG_LOG = 1
"""VHOST_VRING_F_LOG."""
LOG_PAGE = 4096
"""VHOST_LOG_PAGE."""


class ConfigFlag(IntEnum):
    """ "Virtio device config space", flags: who writes, and why."""

    WRITABLE = 0
    MIGRATION = 1


class TransferDirection(IntEnum):
    """ "Device state transfer parameters", direction."""

    SAVE = 0
    LOAD = 1


PHASE_STOPPED = 0
"""The only migration phase there is: the device is suspended."""


def bit(feature: int) -> int:
    """The mask of one feature."""
    return 1 << feature
