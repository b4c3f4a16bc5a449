"""Get Features and Set Features (Base 5.15, 5.27)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from iolane.devices.nvme.identify import ATTRIBUTE_NOTICES
from iolane.devices.nvme.spec import (
    ALL_NAMESPACES,
    CommandError,
    FeatureId,
    Select,
    Status,
    invalid_field,
)
from iolane.devices.nvme.state import FeatureValues
from iolane.devices.nvme.structures import SubmissionEntry

if TYPE_CHECKING:
    from iolane.devices.nvme.controller import Nvme

FID_LOCATION, VALUE_LOCATION, NSID_LOCATION = 40, 44, 4
ALL_SENSORS = 0xF


class Answer(NamedTuple):
    """What Get Features returns: Dword 0 of the completion, and data where the feature has a structure."""

    result: int = 0
    data: bytes = b""


class Features:
    """The features' values, and what setting one does."""

    def __init__(self, controller: Nvme) -> None:
        self.controller = controller
        self._getters: dict[int, Callable[[FeatureValues, SubmissionEntry], Answer]] = {
            FeatureId.ARBITRATION: lambda values, _: Answer(values.arbitration),
            FeatureId.POWER_MANAGEMENT: lambda values, _: Answer(values.power_management),
            FeatureId.TEMPERATURE_THRESHOLD: self._get_temperature,
            FeatureId.ERROR_RECOVERY: self._get_error_recovery,
            FeatureId.VOLATILE_WRITE_CACHE: lambda values, _: Answer(values.write_cache),
            FeatureId.NUMBER_OF_QUEUES: lambda *_: Answer(self._queue_counts()),
            FeatureId.INTERRUPT_COALESCING: lambda values, _: Answer(values.coalescing),
            FeatureId.INTERRUPT_VECTOR: self._get_vector,
            FeatureId.WRITE_ATOMICITY: lambda values, _: Answer(values.write_atomicity),
            FeatureId.ASYNC_EVENT_CONFIGURATION: lambda values, _: Answer(values.async_events),
            FeatureId.TIMESTAMP: lambda values, _: Answer(0, self._timestamp(values)),
            FeatureId.COMMAND_SET_PROFILE: lambda *_: Answer(0),
            FeatureId.HOST_IDENTIFIER: self._get_host_identifier,
        }
        self._setters: dict[int, Callable[[SubmissionEntry, bytes], int]] = {
            FeatureId.ARBITRATION: self._set_arbitration,
            FeatureId.POWER_MANAGEMENT: self._set_power,
            FeatureId.TEMPERATURE_THRESHOLD: self._set_temperature,
            FeatureId.ERROR_RECOVERY: self._set_error_recovery,
            FeatureId.VOLATILE_WRITE_CACHE: self._set_write_cache,
            FeatureId.NUMBER_OF_QUEUES: self._set_queue_counts,
            FeatureId.INTERRUPT_COALESCING: self._set_coalescing,
            FeatureId.INTERRUPT_VECTOR: self._set_vector,
            FeatureId.WRITE_ATOMICITY: self._set_write_atomicity,
            FeatureId.ASYNC_EVENT_CONFIGURATION: self._set_async_events,
            FeatureId.TIMESTAMP: self._set_timestamp,
            FeatureId.COMMAND_SET_PROFILE: self._set_profile,
            FeatureId.HOST_IDENTIFIER: self._set_host_identifier,
        }

    @property
    def values(self) -> FeatureValues:
        return self.controller.state.features

    def reset(self) -> None:
        """Every feature takes its default."""
        self.controller.state.features = FeatureValues()
        self.values.timestamp_set_at = self.controller.clock.now_ns()

    @staticmethod
    def data_length(command: SubmissionEntry) -> int:
        """Bytes of the data structure that goes with the feature."""
        match command.cdw10 & 0xFF:
            case FeatureId.TIMESTAMP:
                return 8
            case FeatureId.HOST_IDENTIFIER:
                return 16 if command.cdw11 & 1 else 8
        return 0

    def get(self, command: SubmissionEntry) -> Answer:
        """The current or default value, or what can be done with it; saved ones do not exist (Base 5.15)."""
        feature, select = command.cdw10 & 0xFF, command.cdw10 >> 8 & 7
        getter = self._getters.get(feature)
        if getter is None:
            raise invalid_field(FID_LOCATION, f"no feature {feature:#x}")
        if select == Select.CAPABILITIES:
            return Answer(1 << 2 | (feature == FeatureId.ERROR_RECOVERY) << 1)
        if select > Select.CAPABILITIES:
            raise invalid_field(FID_LOCATION + 1, f"Select {select} is reserved")
        return getter(self.values if select == Select.CURRENT else FeatureValues(), command)

    def set(self, command: SubmissionEntry, data: bytes) -> int:
        """Change a feature's value. Returns Dword 0 of the completion."""
        feature = command.cdw10 & 0xFF
        setter = self._setters.get(feature)
        if setter is None:
            raise invalid_field(FID_LOCATION, f"no feature {feature:#x}")
        if command.cdw10 >> 31:
            raise CommandError(Status.FEATURE_NOT_SAVEABLE, location=FID_LOCATION + 3)
        if command.nsid not in (0, ALL_NAMESPACES) and feature != FeatureId.ERROR_RECOVERY:
            if command.nsid not in self.controller.namespaces:
                raise CommandError(Status.INVALID_NAMESPACE, location=NSID_LOCATION)
            raise CommandError(Status.FEATURE_NOT_NAMESPACE_SPECIFIC, location=NSID_LOCATION)
        return setter(command, data)

    # Base 5.27.1.1: round robin is the only mechanism, the burst is what counts.

    def _set_arbitration(self, command: SubmissionEntry, _: bytes) -> int:
        self.values.arbitration = command.cdw11 & 0xFFFFFF07
        return 0

    @property
    def burst(self) -> int:
        """Commands fetched from one queue before it is the next one's turn."""
        exponent = self.values.arbitration & 7
        return 1 << exponent if exponent < 7 else 128

    def _set_power(self, command: SubmissionEntry, _: bytes) -> int:
        """Base 5.27.1.2: there is power state 0 only."""
        if command.cdw11 & 0x1F:
            raise invalid_field(VALUE_LOCATION, "there is only power state 0")
        self.values.power_management = command.cdw11 & 0xE0
        return 0

    # Base 5.27.1.3: bits 15:0 the threshold, 19:16 the sensor, 21:20 over or under.

    def _get_temperature(self, values: FeatureValues, command: SubmissionEntry) -> Answer:
        sensor, kind = command.cdw11 >> 16 & 0xF, command.cdw11 >> 20 & 3
        if sensor or kind > 1:
            raise invalid_field(VALUE_LOCATION + 2, "only the composite temperature has thresholds")
        return Answer(values.under_temperature if kind else values.over_temperature)

    def _set_temperature(self, command: SubmissionEntry, _: bytes) -> int:
        sensor, kind = command.cdw11 >> 16 & 0xF, command.cdw11 >> 20 & 3
        if sensor not in (0, ALL_SENSORS) or kind > 1:
            raise invalid_field(VALUE_LOCATION + 2, "only the composite temperature has thresholds")
        if kind:
            self.values.under_temperature = command.cdw11 & 0xFFFF
        else:
            self.values.over_temperature = command.cdw11 & 0xFFFF
        self.controller.health.check()
        return 0

    # NVM Command Set 4.1.3.1: time limited error recovery, by namespace.

    def _get_error_recovery(self, values: FeatureValues, command: SubmissionEntry) -> Answer:
        self._check_namespace(command)
        return Answer(values.error_recovery.get(command.nsid, 0))

    def _set_error_recovery(self, command: SubmissionEntry, _: bytes) -> int:
        if command.cdw11 >> 16:
            raise invalid_field(VALUE_LOCATION + 2, "deallocated blocks have no error")
        if command.nsid == ALL_NAMESPACES:
            self.values.error_recovery = dict.fromkeys(self.controller.namespaces, command.cdw11)
            return 0
        self._check_namespace(command)
        self.values.error_recovery[command.nsid] = command.cdw11
        return 0

    def _check_namespace(self, command: SubmissionEntry) -> None:
        if command.nsid not in self.controller.namespaces:
            raise CommandError(Status.INVALID_NAMESPACE, location=NSID_LOCATION)

    def _set_write_cache(self, command: SubmissionEntry, _: bytes) -> int:
        """Base 5.27.1.4. Off: each write is safe before it completes; the caller flushes what is cached."""
        self.values.write_cache = command.cdw11 & 1
        return 0

    # Base 5.27.1.5: every queue is granted, whatever the host asks for.

    def _queue_counts(self) -> int:
        count = self.controller.queue_pairs - 1
        return count << 16 | count

    def _set_queue_counts(self, command: SubmissionEntry, _: bytes) -> int:
        if command.cdw11 & 0xFFFF == 0xFFFF or command.cdw11 >> 16 == 0xFFFF:
            raise invalid_field(VALUE_LOCATION, "65536 queues do not exist")
        if len(self.controller.state.submission) > 1 or len(self.controller.state.completion) > 1:
            raise CommandError(Status.COMMAND_SEQUENCE_ERROR, "there are I/O queues already")
        return self._queue_counts()

    # Base 5.27.1.6 and 5.27.1.7: bits 7:0 the threshold, 15:8 the time in 100 us; by vector on or off.

    def _set_coalescing(self, command: SubmissionEntry, _: bytes) -> int:
        self.values.coalescing = command.cdw11 & 0xFFFF
        self.controller.signals.send_held()
        return 0

    def _get_vector(self, values: FeatureValues, command: SubmissionEntry) -> Answer:
        vector = self._vector(command)
        return Answer(vector | (vector in values.uncoalesced) << 16)

    def _set_vector(self, command: SubmissionEntry, _: bytes) -> int:
        vector = self._vector(command)
        disabled = set(self.values.uncoalesced) - {vector}
        if command.cdw11 >> 16 & 1:
            disabled.add(vector)
        self.values.uncoalesced = sorted(disabled)
        self.controller.signals.send_held()
        return 0

    def _vector(self, command: SubmissionEntry) -> int:
        vector = command.cdw11 & 0xFFFF
        if vector >= self.controller.signals.vector_count:
            raise invalid_field(VALUE_LOCATION, f"there is no vector {vector}")
        return vector

    def _set_write_atomicity(self, command: SubmissionEntry, _: bytes) -> int:
        """NVM Command Set 4.1.3.2: one block is atomic (AWUN, AWUPF), with Disable Normal or without."""
        self.values.write_atomicity = command.cdw11 & 1
        return 0

    def _set_async_events(self, command: SubmissionEntry, _: bytes) -> int:
        """Base 5.27.1.8: only what OAES offers."""
        if command.cdw11 & ~(0xFF | ATTRIBUTE_NOTICES):
            raise invalid_field(VALUE_LOCATION, "OAES does not offer these notices")
        self.values.async_events = command.cdw11
        self.controller.health.check()
        return 0

    # Base 5.27.1.11: 48 bits of milliseconds, bit 0 of byte 6 synch, bits 3:1 the origin.

    def _timestamp(self, values: FeatureValues) -> bytes:
        passed = self.controller.clock.now_ns() - values.timestamp_set_at
        now = (values.timestamp + max(passed, 0) // 1_000_000) & (1 << 48) - 1
        return now.to_bytes(6, "little") + bytes((values.timestamp_from_host << 1, 0))

    def _set_timestamp(self, _: SubmissionEntry, data: bytes) -> int:
        self.values.timestamp = int.from_bytes(data[:6], "little")
        self.values.timestamp_set_at = self.controller.clock.now_ns()
        self.values.timestamp_from_host = True
        return 0

    def _set_profile(self, command: SubmissionEntry, _: bytes) -> int:
        """Base 5.27.1.18: combination 0 is the only one (CNS 1Ch)."""
        if command.cdw11 & 0x1FF:
            raise CommandError(Status.COMMAND_SET_COMBINATION_REJECTED, location=VALUE_LOCATION)
        return 0

    # Base 5.27.1.25: 64 or 128 bits; it can be set once.

    def _get_host_identifier(self, values: FeatureValues, command: SubmissionEntry) -> Answer:
        return Answer(0, values.host_identifier[: self.data_length(command)])

    def _set_host_identifier(self, _: SubmissionEntry, data: bytes) -> int:
        if not any(data):
            raise invalid_field(VALUE_LOCATION, "a host identifier of 0 means none")
        wanted = data.ljust(16, b"\0")
        if any(self.values.host_identifier) and wanted != self.values.host_identifier:
            raise CommandError(Status.COMMAND_SEQUENCE_ERROR, "the host identifier is set already")
        self.values.host_identifier = wanted
        return 0
