"""The migration state of a device, and its state as a stream.

"VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE", "VFIO_USER_MIG_DATA_READ", "VFIO_USER_MIG_DATA_WRITE". The
device runs in PRE_COPY, where there is nothing to send yet; in STOP_COPY its whole state is the stream.
"""

from __future__ import annotations

from iolane.carriers.vfio_user.protocol import (
    MIGRATION_DATA,
    MigrationState,
)
from iolane.carriers.vfio_user.rejection import RefusedError, Rejection
from iolane.carriers.vfio_user.session import STOPPED_STATES, Reply, Request, Session

S = MigrationState
ARCS = {
    S.RUNNING: frozenset({S.STOP, S.PRE_COPY}),
    S.STOP: frozenset({S.RUNNING, S.STOP_COPY, S.RESUMING}),
    S.STOP_COPY: frozenset({S.STOP}),
    S.PRE_COPY: frozenset({S.RUNNING, S.STOP_COPY}),
    S.RESUMING: frozenset({S.STOP}),
}
""" "Direct State Transitions"."""
STATE_SLACK = 1 << 20
"""Bytes that a state may have beyond twice this device's own."""
SAVING = frozenset({S.PRE_COPY, S.STOP_COPY})


def find_path(start: MigrationState, target: MigrationState) -> list[MigrationState] | None:
    """ "Complex State Transitions": the shortest path without a saving state inside it; None where there is
    none.
    """
    if start is S.STOP_COPY and target is S.PRE_COPY:
        return None  # "explicitly not allowed"
    paths = [[start]]
    seen = {start}
    while paths:
        path = paths.pop(0)
        if path[-1] is target:
            return path[1:]
        if len(path) > 1 and path[-1] in SAVING:
            continue
        for state in sorted(ARCS.get(path[-1], ())):
            if state not in seen:
                seen.add(state)
                paths.append([*path, state])
    return None


class Migration:
    """Walks the states; a device that could not follow is in ERROR until it is reset."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._outgoing = memoryview(b"")
        self._incoming = bytearray()
        self._longest = 0

    def set_state(self, number: int) -> None:
        """Go to the state of `number`. Under the device's lock."""
        try:
            target = MigrationState(number)
        except ValueError:
            raise RefusedError(Rejection.MIGRATION_ARC, f"state {number}") from None
        path = find_path(self._session.state, target)
        if path is None:
            raise RefusedError(Rejection.MIGRATION_ARC, f"from {self._session.state.name} to {target.name}")
        for state in path:
            self._step(state)

    def _step(self, state: MigrationState) -> None:
        device = self._session.device
        left = self._session.state
        if state in STOPPED_STATES and left not in STOPPED_STATES:
            device.pause()
        if left is S.RESUMING:
            self._load()
        if left is S.STOP_COPY:
            self._outgoing = memoryview(b"")
        if state is S.STOP_COPY:
            self._outgoing = memoryview(device.save())
        elif state is S.RESUMING:
            self._longest = STATE_SLACK + 2 * len(device.save())
        elif state is S.RUNNING and left in STOPPED_STATES:
            device.resume()
        self._session.enter(state)

    def _load(self) -> None:
        """ "Complete processing of the migration data". Whatever a hostile stream does, the device is reset
        before it runs again.
        """
        data, self._incoming = bytes(self._incoming), bytearray()
        if not data:
            return
        try:
            self._session.device.load(data)
        except Exception as error:
            self._session.enter(S.ERROR)
            raise RefusedError(Rejection.MIGRATION_STREAM, f"{type(error).__name__}: {error}") from error

    def after_reset(self) -> None:
        """ "To recover from ERROR, VFIO_USER_DEVICE_RESET must be used to return back to RUNNING"."""
        self._outgoing, self._incoming = memoryview(b""), bytearray()
        if self._session.state not in (S.RUNNING, S.PRE_COPY):
            self._session.device.resume()
        self._session.enter(S.RUNNING)

    def read(self, request: Request) -> Reply:
        """ "VFIO_USER_MIG_DATA_READ": less than was asked for is the end."""
        argsz, size = request.unpack(MIGRATION_DATA, exact=True)
        if self._session.state not in SAVING or size > self._session.peer.max_data_xfer_size:
            raise RefusedError(
                Rejection.MIGRATION_DATA, f"read of {size} bytes in {self._session.state.name}"
            )
        if argsz < MIGRATION_DATA.size + size:
            raise RefusedError(Rejection.ARGSZ, f"{argsz} for {size} bytes of migration data")
        data = bytes(self._outgoing[:size])
        self._outgoing = self._outgoing[size:]
        return Reply(MIGRATION_DATA.pack(MIGRATION_DATA.size + len(data), len(data)) + data)

    def write(self, request: Request) -> Reply:
        """ "VFIO_USER_MIG_DATA_WRITE"."""
        argsz, size = request.unpack(MIGRATION_DATA)
        if len(request.payload) != MIGRATION_DATA.size + size:
            raise RefusedError(
                Rejection.PAYLOAD_SIZE, f"{size} bytes of migration data in {len(request.payload)}"
            )
        if argsz < MIGRATION_DATA.size + size:
            raise RefusedError(Rejection.ARGSZ, f"{argsz} for {size} bytes of migration data")
        if self._session.state is not S.RESUMING or len(self._incoming) + size > self._longest:
            raise RefusedError(
                Rejection.MIGRATION_DATA, f"write of {size} bytes in {self._session.state.name}"
            )
        self._incoming += request.payload[MIGRATION_DATA.size :]
        return Reply()
