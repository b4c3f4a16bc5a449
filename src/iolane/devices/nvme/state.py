"""What an NVMe controller keeps besides its registers."""

from __future__ import annotations

from typing import Annotated

import msgspec

from iolane.devices.nvme.health import WARNING_TEMPERATURE
from iolane.devices.nvme.queues import U16, U32, Completion, CompletionQueue, Number, SubmissionQueue
from iolane.devices.nvme.spec import ARBITRATION_BURST, ERROR_LOG_ENTRIES, EVENT_REQUEST_LIMIT
from iolane.model.state import DeviceState, StateError

WAITING_LIMIT = 8192
U8 = Annotated[int, msgspec.Meta(ge=0, le=0xFF)]


class FeatureValues(msgspec.Struct):
    """Current values of the features (Base 5.27.1): Command Dword 11 as set, or the data structure."""

    arbitration: U32 = ARBITRATION_BURST
    power_management: U32 = 0
    over_temperature: U32 = WARNING_TEMPERATURE
    under_temperature: U32 = 0
    error_recovery: dict[U32, U32] = {}
    """By NSID."""
    write_cache: U32 = 1
    coalescing: U32 = 0
    uncoalesced: list[U16] = []
    """Vectors whose Coalescing Disable is set."""
    write_atomicity: U32 = 0
    async_events: U32 = 0
    timestamp: Number = 0
    """Milliseconds since 1970 that the host set, or 0."""
    timestamp_set_at: Number = 0
    """The clock's nanoseconds at that time."""
    timestamp_from_host: bool = False
    host_identifier: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)] = bytes(16)


class ErrorEntry(msgspec.Struct, array_like=True):
    """An entry of the Error Information log (Base 5.16.1.2)."""

    count: Number
    sqid: U16
    cid: U16
    status: Annotated[int, msgspec.Meta(ge=0, le=0x7FFF)]
    location: U16
    lba: Number
    nsid: U32


class Event(msgspec.Struct, array_like=True):
    """An asynchronous event to report (Base 5.2)."""

    kind: U8
    information: U8
    log: U8


class EventState(msgspec.Struct):
    """Asynchronous events and the requests that carry them."""

    requests: Annotated[list[U16], msgspec.Meta(max_length=EVENT_REQUEST_LIMIT)] = []
    """Command identifiers of Asynchronous Event Requests, oldest first."""
    pending: Annotated[list[Event], msgspec.Meta(max_length=64)] = []
    masked: Annotated[list[U8], msgspec.Meta(max_length=8)] = []
    """Event types reported and not yet cleared by reading their log page."""


class HealthState(msgspec.Struct):
    """Counters of the SMART log (Base 5.16.1.3). They survive resets."""

    bytes_read: Number = 0
    bytes_written: Number = 0
    reads: Number = 0
    writes: Number = 0
    busy_ns: Number = 0
    powered_ns: Number = 0
    power_cycles: Number = 1
    unsafe_shutdowns: Number = 0
    media_errors: Number = 0
    errors: Number = 0
    warning_ns: Number = 0
    critical_ns: Number = 0
    temperature: U16 = 308
    """Kelvin."""
    spare: U8 = 100
    used: U8 = 0
    reliable: bool = True
    reported_warnings: U8 = 0
    """Critical warnings of which an event has been raised and that persist."""


class Shadow(msgspec.Struct):
    """Doorbells in guest memory (Base 5.8)."""

    doorbells: Number
    event_indexes: Number


class NvmeState(DeviceState):
    """All of it."""

    submission: dict[U16, SubmissionQueue] = msgspec.field(default_factory=dict)
    completion: dict[U16, CompletionQueue] = msgspec.field(default_factory=dict)
    features: FeatureValues = msgspec.field(default_factory=FeatureValues)
    events: EventState = msgspec.field(default_factory=EventState)
    errors: Annotated[list[ErrorEntry], msgspec.Meta(max_length=ERROR_LOG_ENTRIES)] = msgspec.field(
        default_factory=list
    )
    """Newest first."""
    health: HealthState = msgspec.field(default_factory=HealthState)
    shadow: Shadow | None = None
    interrupt_mask: U32 = 0
    unsent: list[U16] = msgspec.field(default_factory=list)
    """Completion queues whose interrupt is masked by INTMS."""
    changed_namespaces: list[U32] = msgspec.field(default_factory=list)
    write_protected: list[U32] = msgspec.field(default_factory=list)


def check_state(state: NvmeState, queue_pairs: int) -> None:
    """Refuse a loaded state that no guest could have brought about. Raises StateError."""
    for kind, queues in (("submission", state.submission), ("completion", state.completion)):
        for qid, queue in queues.items():
            ring = 2 <= queue.size <= 4096 and queue.head < queue.size and queue.tail < queue.size
            if qid != queue.qid or qid > queue_pairs or not ring or queue.base & 0xFFF:
                raise StateError(f"the saved {kind} queue {qid} is impossible")
    if any(queue.cqid not in state.completion for queue in state.submission.values()):
        raise StateError("a saved submission queue has no completion queue")
    if any(len(queue.waiting) > WAITING_LIMIT for queue in state.completion.values()):
        raise StateError("a saved completion queue has too many completions that wait")
    if any(completion.sqid not in state.submission for completion in _waiting(state)):
        raise StateError("a saved completion is of no queue")


def _waiting(state: NvmeState) -> list[Completion]:
    return [completion for queue in state.completion.values() for completion in queue.waiting]
