"""Device features: "VFIO_USER_DEVICE_FEATURE"."""

from __future__ import annotations

from iolane.carriers.vfio_user.migration import Migration
from iolane.carriers.vfio_user.protocol import (
    FEATURE,
    FEATURE_INDEX_MASK,
    FEATURE_MIGRATION,
    FEATURE_STATE,
    LOGGING_CONTROL,
    LOGGING_RANGE,
    LOGGING_REPORT,
    MAX_DATA_XFER,
    Feature,
    FeatureFlag,
    MigrationFlag,
)
from iolane.carriers.vfio_user.rejection import RefusedError, Rejection
from iolane.carriers.vfio_user.session import Reply, Request, Session
from iolane.errors import IolaneError

GET, SET, PROBE = int(FeatureFlag.GET), int(FeatureFlag.SET), int(FeatureFlag.PROBE)
OPERATIONS = {
    Feature.MIGRATION: GET,
    Feature.MIG_DEVICE_STATE: GET | SET,
    Feature.DMA_LOGGING_START: SET,
    Feature.DMA_LOGGING_STOP: SET,
    Feature.DMA_LOGGING_REPORT: GET,
}
RANGE_LIMIT = 1024
"""Ranges of one dirty log; each write by the device is compared with all of them."""


class FeatureCommands:
    """DEVICE_FEATURE: probe, get and set."""

    def __init__(self, session: Session, migration: Migration) -> None:
        self._session = session
        self._migration = migration
        self._logging_page_size = 0

    def feature(self, request: Request) -> Reply:
        """Probing and setting answer with the request's payload, getting adds the data."""
        argsz, flags = request.unpack(FEATURE)
        index = flags & FEATURE_INDEX_MASK
        operations = flags & ~FEATURE_INDEX_MASK
        if index not in OPERATIONS or not self._session.device.migratable:
            raise RefusedError(Rejection.FEATURE_INDEX, f"{index}")
        feature = Feature(index)
        wanted = operations & ~PROBE
        if wanted & ~OPERATIONS[feature] or (not operations & PROBE and wanted not in (GET, SET)):
            raise RefusedError(Rejection.FEATURE_FLAGS, f"{operations:#x} of {feature.name}")
        payload = bytes(request.payload)
        if not operations & PROBE and wanted == GET:
            return Reply(self._get(feature, flags, argsz, payload[FEATURE.size :]))
        if argsz < len(payload):
            raise RefusedError(Rejection.ARGSZ, f"{argsz} for {len(payload)} bytes of {feature.name}")
        if not operations & PROBE:
            self._set(feature, payload[FEATURE.size :])
        return Reply(payload)

    def _get(self, feature: Feature, flags: int, argsz: int, data: bytes) -> bytes:
        if feature is Feature.DMA_LOGGING_REPORT:
            answer = self._report(argsz, data)
        elif feature is Feature.MIG_DEVICE_STATE:
            answer = FEATURE_STATE.pack(self._session.state, 0)
        else:
            answer = FEATURE_MIGRATION.pack(MigrationFlag.STOP_COPY | MigrationFlag.PRE_COPY)
        needed = FEATURE.size + len(answer)
        if argsz < needed:
            raise RefusedError(Rejection.ARGSZ, f"{argsz} for {needed} bytes of {feature.name}")
        return FEATURE.pack(needed, flags) + answer

    def _set(self, feature: Feature, data: bytes) -> None:
        with self._session.device.lock:
            if feature is Feature.DMA_LOGGING_START:
                self._start_logging(data)
            elif feature is Feature.DMA_LOGGING_STOP:
                if not self._logging_page_size:
                    raise RefusedError(Rejection.LOGGING_OFF, "stop")
                self.stop_logging()
            else:
                if len(data) < FEATURE_STATE.size:
                    raise RefusedError(Rejection.PAYLOAD_SIZE, f"{len(data)} bytes of migration state")
                self._migration.set_state(FEATURE_STATE.unpack_from(data)[0])

    def _start_logging(self, data: bytes) -> None:
        """ "VFIO_DEVICE_FEATURE_DMA_LOGGING_START": no range is everything."""
        if len(data) < LOGGING_CONTROL.size:
            raise RefusedError(Rejection.PAYLOAD_SIZE, f"{len(data)} bytes of logging control")
        page_size, count, _ = LOGGING_CONTROL.unpack_from(data)
        listed = data[LOGGING_CONTROL.size :]
        if len(listed) != count * LOGGING_RANGE.size:
            raise RefusedError(Rejection.PAYLOAD_SIZE, f"{count} ranges in {len(listed)} bytes")
        if self._logging_page_size:
            raise RefusedError(Rejection.LOGGING_OFF, "started twice")
        if count > RANGE_LIMIT:
            raise RefusedError(Rejection.LOGGING_RANGE, f"{count} ranges")
        try:
            self._session.device.dma.start_dirty_log(list(LOGGING_RANGE.iter_unpack(listed)), page_size)
        except IolaneError as error:
            raise RefusedError(Rejection.LOGGING_RANGE, str(error)) from None
        self._logging_page_size = page_size

    def stop_logging(self) -> None:
        """Forget the dirty log: by command, and when the client goes."""
        self._session.device.dma.stop_dirty_log()
        self._logging_page_size = 0

    def _report(self, argsz: int, data: bytes) -> bytes:
        """ "VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT".

        The bitmap is an array of u64; Cloud Hypervisor leaves room for its bytes only, and gets those.
        """
        if len(data) < LOGGING_REPORT.size:
            raise RefusedError(Rejection.PAYLOAD_SIZE, f"{len(data)} bytes of logging report")
        iova, length, page_size = LOGGING_REPORT.unpack_from(data)
        if not self._logging_page_size:
            raise RefusedError(Rejection.LOGGING_OFF, "report")
        if (
            page_size < self._logging_page_size
            or page_size & (page_size - 1)
            or not length
            or length % page_size
        ):
            raise RefusedError(Rejection.LOGGING_RANGE, f"{length:#x} bytes in pages of {page_size}")
        fixed = FEATURE.size + LOGGING_REPORT.size
        size = -(-length // (8 * page_size))
        if fixed + size > argsz or size * (page_size // self._logging_page_size) > MAX_DATA_XFER:
            raise RefusedError(Rejection.ARGSZ, f"{argsz} for a bitmap of {size} bytes")
        with self._session.device.lock:
            try:
                bits = self._session.device.dma.collect_dirty(iova, length)
            except IolaneError as error:
                raise RefusedError(Rejection.LOGGING_RANGE, str(error)) from None
        bits = _coarser(bits, page_size // self._logging_page_size)
        padded = -(-len(bits) // 8) * 8
        if fixed + padded <= argsz:
            bits = bits.ljust(padded, b"\0")
        return data[: LOGGING_REPORT.size] + bits


PAIRS = bytes(sum(1 << bit for bit in range(4) if byte >> 2 * bit & 3) for byte in range(256))
"""For each byte, four bits: which of its four pairs of bits are not both 0."""


def _coarser(bits: bytes, factor: int) -> bytes:
    """One bit for `factor` bits (a power of two), set where any of them is."""
    while factor > 1:
        nibbles = bits.translate(PAIRS)
        low, high = nibbles[0::2], nibbles[1::2].ljust(-(-len(nibbles) // 2), b"\0")
        merged = int.from_bytes(low, "little") | int.from_bytes(high, "little") << 4
        bits = merged.to_bytes(len(low), "little")
        factor //= 2
    return bits
