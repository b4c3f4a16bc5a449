"""Each way in which a peer's message can be wrong has a name, an errno and a counter."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass

from iolane.carriers.refusal import Counts, Reason, RefusalError


class Rejection(Reason):
    """What was wrong with a message. The value is (text, errno of the error reply).

    Those in `ENDS_CONNECTION` leave no way to find the next message, or no agreed protocol; the rest
    get an error reply.
    """

    # Framing ("Header")
    MESSAGE_TOO_SHORT = "the message size is below the header's", errno.EINVAL
    MESSAGE_TOO_LONG = "the message size is above max_data_xfer_size and a header", errno.EMSGSIZE
    MESSAGE_CUT = "the connection ended inside a message", errno.ECONNRESET
    MESSAGE_TYPE = "the message is neither a command nor a reply", errno.EBADMSG
    UNEXPECTED_REPLY = "a reply to nothing that was asked", errno.EBADMSG
    WRONG_REPLY = "a reply that does not fit what was asked", errno.EPROTO
    UNKNOWN_COMMAND = "no such command", errno.ENOTSUP
    WRONG_DIRECTION = "a command that only a server sends", errno.EOPNOTSUPP
    PAYLOAD_SIZE = "the payload is not as long as the command needs", errno.ENODATA
    ARGSZ = "argsz is below the fixed part of the reply, or above what can be sent", errno.E2BIG
    # File descriptors
    FDS_UNWANTED = "file descriptors came with a command that takes none, or too many", errno.EBADF
    FDS_LOST = "more file descriptors than a message may carry, or than this process may open", errno.EMFILE
    # "VFIO_USER_VERSION"
    VERSION_FIRST = "the first message is not VERSION", errno.EPROTO
    VERSION_AGAIN = "VERSION was sent before", errno.EALREADY
    VERSION_MAJOR = "the major version is not ours", errno.EPROTONOSUPPORT
    VERSION_DATA = "the version data is not a JSON object that ends in NUL", errno.EINVAL
    VERSION_CAPABILITY = "a capability's value can't be", errno.ERANGE
    # Regions
    REGION_INDEX = "no such region", errno.ENOENT
    REGION_RANGE = "the access leaves its region", errno.EFAULT
    REGION_COUNT = (
        "the access is longer than max_data_xfer_size, or its data is not as long as its count",
        errno.EINVAL,
    )
    WRITE_MULTI_COUNT = "wr_cnt does not fit the message", errno.EINVAL
    REGION_FLAGS = "fields that must be zero are not", errno.EINVAL
    DEVICE_STOPPED = "the device is stopped by its migration state", errno.EBUSY
    # "VFIO_USER_DEVICE_SET_IRQS"
    IRQ_INDEX = "no such interrupt type", errno.ENOENT
    IRQ_RANGE = "no such vector", errno.ERANGE
    IRQ_FLAGS = "not exactly one data and one action flag, or a count that does not fit them", errno.EINVAL
    IRQ_ACTION = "the interrupt type does not support that action", errno.ENOTSUP
    IRQ_FDS = "the number of eventfds is neither 0 nor the count", errno.EINVAL
    IRQ_NOT_EVENTFD = "a file descriptor is not an eventfd", errno.EBADF
    # DMA
    DMA_FLAGS = "unknown flags, or flags without permission or file", errno.EINVAL
    DMA_RANGE = "an empty range, or one past the 64-bit address space", errno.ERANGE
    DMA_OVERLAP = "a map over an existing map", errno.EEXIST
    DMA_LIMIT = "more than max_dma_maps maps", errno.ENOSPC
    DMA_FILE = "the file can't be mapped, or is shorter than the map", errno.EBADFD
    DMA_STRADDLE = "an unmap would cut a map in two", errno.EINVAL
    DMA_BITMAP = "the dirty bitmap asked for does not fit the range, or logging is off", errno.EINVAL
    # "VFIO_USER_DEVICE_FEATURE"
    FEATURE_INDEX = "no such feature", errno.ENOTTY
    FEATURE_FLAGS = "not one operation, or one that the feature does not have", errno.EINVAL
    LOGGING_RANGE = "bad page size or ranges of the dirty log", errno.EINVAL
    LOGGING_OFF = "dirty logging is not started, or started twice", errno.EINVAL
    # Migration
    MIGRATION_ARC = "no such migration state, or no way to it", errno.EINVAL
    MIGRATION_DATA = "no data is transferred in this migration state, or not that much", errno.EINVAL
    MIGRATION_STREAM = "the device does not take that state", errno.EBADMSG


ENDS_CONNECTION = frozenset(
    {
        Rejection.MESSAGE_TOO_SHORT,
        Rejection.MESSAGE_TOO_LONG,
        Rejection.MESSAGE_CUT,
        Rejection.VERSION_FIRST,
        Rejection.VERSION_MAJOR,
        Rejection.VERSION_DATA,
        Rejection.VERSION_CAPABILITY,
    }
)


class RefusedError(RefusalError[Rejection]):
    """A message of vfio-user that is wrong."""


@dataclass(eq=False)
class Statistics(Counts[Rejection]):
    """What a vfio-user server or a connection of it has seen."""

    reads: int = 0
    """Of regions, like `writes`; `messages` are the others."""
    writes: int = 0

    def reasons(self) -> Iterable[Rejection]:
        return Rejection
