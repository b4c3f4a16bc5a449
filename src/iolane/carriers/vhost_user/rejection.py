"""Each way in which a front end's message can be wrong has a name, an errno and a counter."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass

from iolane.carriers.refusal import Counts, Reason, RefusalError


class Rejection(Reason):
    """What was wrong with a message. The value is (text, errno for a reply that acknowledges).

    A message that nobody acknowledges can only be refused by ending the connection: else the front end would
    go on with something that it does not have.
    """

    # Framing ("Header")
    MESSAGE_VERSION = "the version in the flags is not 1", errno.EPROTO
    MESSAGE_TOO_LONG = "the payload is longer than any message", errno.EMSGSIZE
    MESSAGE_CUT = "the connection ended inside a message", errno.ECONNRESET
    UNEXPECTED_REPLY = "a reply to nothing that was asked", errno.EBADMSG
    UNKNOWN_REQUEST = "no such request, or not one that was advertised", errno.EOPNOTSUPP
    PAYLOAD_SIZE = "the payload is not as long as the request needs", errno.ENODATA
    NOT_NEGOTIATED = "the request belongs to a feature that was not negotiated", errno.EPERM
    # File descriptors
    FDS_COUNT = "not the number of file descriptors that the request needs", errno.EBADF
    FDS_LOST = "more file descriptors than a message may carry, or than this process may open", errno.EMFILE
    FD_KIND = "a file descriptor is not of the kind that the request needs", errno.EBADFD
    # Features
    FEATURES_NOT_OFFERED = "features that are not offered, or that need others", errno.EINVAL
    FEATURES_WHILE_RUNNING = "features of the device change while a ring runs", errno.EBUSY
    PROTOCOL_FEATURES = "protocol features that are not offered", errno.EINVAL
    # Memory
    REGION_COUNT = "more regions than there are slots, or none", errno.ENOSPC
    REGION_RANGE = "an empty region, or one past the 64-bit address space", errno.ERANGE
    REGION_OVERLAP = "a region over an existing region", errno.EEXIST
    REGION_FILE = "the file can't be mapped, or is shorter than its region", errno.EBADF
    REGION_UNKNOWN = "no such region", errno.ENOENT
    # Rings
    VRING_INDEX = "no such ring", errno.ENOENT
    VRING_NUM = (
        "a ring size that is no power of two up to 32768, or more than is tracked",
        errno.EINVAL,
    )
    VRING_BASE = "a ring index that can't be", errno.ERANGE
    VRING_ADDRESS = "a ring that is not in the memory table, or not aligned", errno.EFAULT
    VRING_RUNNING = "the ring runs", errno.EBUSY
    VRING_REFUSED = "the device can't serve the ring", errno.EAGAIN
    # Logging
    LOG_SIZE = "a log that can't be mapped, or that has no bytes", errno.EINVAL
    LOG_ADDRESS = "the log of the used ring lies past the log's end", errno.ERANGE
    # Configuration
    CONFIG_RANGE = "the range leaves the configuration space, or is empty", errno.ERANGE
    CONFIG_READ_ONLY = "a write to configuration that the driver may only read", errno.EROFS
    CONFIG_FLAGS = "flags of a configuration write that do not exist", errno.EINVAL
    # In-flight
    INFLIGHT_SHAPE = "more queues than there are, a size that can't be, or another one", errno.EINVAL
    INFLIGHT_FILE = "the in-flight area can't be mapped, or is too short", errno.EBADF
    # Status and state
    STATUS = "a status that has bits that do not exist", errno.EINVAL
    FEATURES_REFUSED = "the device refuses these features", errno.ENOTSUP
    STATE_DIRECTION = "no such direction or phase", errno.EINVAL
    STATE_RUNNING = "the device's state is asked for while rings run, or while it is on its way", errno.EBUSY
    STATE_REFUSED = "the device does not take, or give, its state", errno.EBADMSG
    # Network
    MTU = "an MTU that the device refuses", errno.ERANGE


ENDS_CONNECTION = frozenset(
    {
        Rejection.MESSAGE_VERSION,
        Rejection.MESSAGE_TOO_LONG,
        Rejection.MESSAGE_CUT,
        Rejection.UNEXPECTED_REPLY,
        Rejection.FDS_LOST,
    }
)


class RefusedError(RefusalError[Rejection]):
    """A message of vhost-user that is wrong."""


@dataclass(eq=False)
class Statistics(Counts[Rejection]):
    """What a vhost-user server or a connection of it has seen."""

    ring_starts: int = 0
    resubmitted: int = 0
    """Chains that were in flight when another back end died, and were done again."""
    config_changes: int = 0
    """Messages that told the front end of a configuration change."""

    def reasons(self) -> Iterable[Rejection]:
        return Rejection
