"""What is wrong with a ring: each reason has its name, and is counted under it."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from iolane.errors import IolaneError
from iolane.model.dma import DmaFault, FaultReason


class RingRejection(StrEnum):
    """Why a queue was given up (virtio 1.3, 2.7). The order is fixed: compiled code names them by number."""

    SIZE = "queue size is no power of two up to 32768"
    UNALIGNED = "descriptors, available or used ring are not aligned"
    RING_ADDRESS = "a ring leaves the address space"
    RING_UNREACHABLE = "a ring is not in memory that the device may use"
    AVAILABLE_OVERRUN = "more chains are available than the queue has descriptors"
    HEAD_OUT_OF_RANGE = "the head of a chain is no descriptor of the queue"
    HEAD_IN_FLIGHT = "a chain is made available twice"
    NEXT_OUT_OF_RANGE = "a chain goes on at a descriptor that does not exist"
    LOOP = "a chain has more descriptors than its table"
    CHAIN_TOO_LONG = "a chain has more descriptors than the device allows"
    READABLE_AFTER_WRITABLE = "a readable descriptor follows a writable one"
    LENGTH_OVERFLOW = "a chain has more than 2 ** 32 bytes"
    INDIRECT_NOT_NEGOTIATED = "an indirect descriptor without the feature"
    INDIRECT_NESTED = "an indirect descriptor inside an indirect table"
    INDIRECT_NEXT = "an indirect descriptor with a next one"
    INDIRECT_LENGTH = "an indirect table is empty or not made of whole descriptors"
    INDIRECT_UNREACHABLE = "an indirect table is not in memory that the device may read"
    BUFFER_UNMAPPED = "a buffer is not mapped"
    BUFFER_READ_ONLY = "a buffer to write is in read-only memory"
    BUFFER_WRITE_ONLY = "a buffer to read is in write-only memory"
    BUFFER_OUT_OF_RANGE = "a buffer ends past its memory"
    BUFFER_LOST = "a buffer's memory is gone"
    BUS_MASTER_OFF = "the device may not do DMA"
    MALFORMED_REQUEST = "a chain is not what its queue is for"


_BUFFER_FAULTS = {
    FaultReason.UNMAPPED: RingRejection.BUFFER_UNMAPPED,
    FaultReason.READ_ONLY: RingRejection.BUFFER_READ_ONLY,
    FaultReason.WRITE_ONLY: RingRejection.BUFFER_WRITE_ONLY,
    FaultReason.OUT_OF_RANGE: RingRejection.BUFFER_OUT_OF_RANGE,
    FaultReason.BUS_MASTER_OFF: RingRejection.BUS_MASTER_OFF,
}


def buffer_rejection(fault: DmaFault) -> RingRejection:
    """The rejection that a fault in a chain's buffers stands for."""
    return _BUFFER_FAULTS.get(fault.reason, RingRejection.BUFFER_LOST)


class BrokenRing(IolaneError):  # noqa: N818  it is the state of a ring rather than an error of ours
    """A driver broke the rules of virtqueues; its queue is of no use until a reset."""

    def __init__(self, reason: RingRejection) -> None:
        super().__init__(str(reason))
        self.reason = reason

    @classmethod
    def in_ring(cls, fault: DmaFault) -> Self:
        """A fault in the rings themselves."""
        off = fault.reason is FaultReason.BUS_MASTER_OFF
        return cls(RingRejection.BUS_MASTER_OFF if off else RingRejection.RING_UNREACHABLE)
