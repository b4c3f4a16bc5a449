"""DEVICE_FEATURE: probing, migration states and data, dirty logging."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from iolane.carriers.vfio_user import Rejection, VfioUserClient, VfioUserError, VfioUserServer
from iolane.carriers.vfio_user.features import _coarser
from iolane.carriers.vfio_user.migration import find_path
from iolane.carriers.vfio_user.protocol import Feature, FeatureFlag, MigrationFlag
from iolane.carriers.vfio_user.protocol import MigrationState as S
from tests.unit.carriers.vfio_user.sample import PAGE, RAM, RawClient, Sample, memory_fd

GET, SET, PROBE = FeatureFlag.GET, FeatureFlag.SET, FeatureFlag.PROBE


def feature(index: int, operation: int, data: bytes = b"", argsz: int = 4096) -> bytes:
    return struct.pack("<II", argsz, index | operation) + data


def test_probing(client: VfioUserClient) -> None:
    supported = {
        Feature.MIGRATION: GET,
        Feature.MIG_DEVICE_STATE: GET | SET,
        Feature.DMA_LOGGING_START: SET,
        Feature.DMA_LOGGING_STOP: SET,
        Feature.DMA_LOGGING_REPORT: GET,
    }
    for index, operations in itertools.product(Feature, (0, GET, SET, GET | SET)):
        assert client.probe_feature(index, operations) is not bool(operations & ~int(supported[index]))
    assert client.device_feature(Feature.MIGRATION, PROBE | GET, b"data") == b"data"


@pytest.mark.parametrize(
    ("payload", "rejection"),
    [
        (b"\0" * 7, Rejection.PAYLOAD_SIZE),
        (feature(0, GET), Rejection.FEATURE_INDEX),
        (feature(3, PROBE), Rejection.FEATURE_INDEX),
        (feature(1, 0), Rejection.FEATURE_FLAGS),
        (feature(1, SET), Rejection.FEATURE_FLAGS),
        (feature(2, GET | SET), Rejection.FEATURE_FLAGS),
        (feature(1, GET | 1 << 19), Rejection.FEATURE_FLAGS),
        (feature(1, GET, argsz=15), Rejection.ARGSZ),
        (feature(1, PROBE, argsz=7), Rejection.ARGSZ),
        (feature(2, SET, struct.pack("<II", 2, 0), argsz=15), Rejection.ARGSZ),
        (feature(2, SET, b"\1"), Rejection.PAYLOAD_SIZE),
        (feature(2, SET, struct.pack("<II", 8, 0)), Rejection.MIGRATION_ARC),
        (feature(2, SET, struct.pack("<II", 0, 0)), Rejection.MIGRATION_ARC),
        (feature(2, SET, struct.pack("<II", 5, 0)), Rejection.MIGRATION_ARC),
        (feature(6, SET, struct.pack("<QII", 0, 0, 0)), Rejection.LOGGING_RANGE),
        (feature(6, SET, struct.pack("<QII", 3000, 0, 0)), Rejection.LOGGING_RANGE),
        (feature(6, SET, struct.pack("<QII", 4096, 1, 0)), Rejection.PAYLOAD_SIZE),
        (
            feature(6, SET, struct.pack("<QII", 4096, 1, 0) + struct.pack("<QQ", 0, 0)),
            Rejection.LOGGING_RANGE,
        ),
        (feature(6, SET, struct.pack("<QII", 4096, 2000, 0) + bytes(32000), 40000), Rejection.LOGGING_RANGE),
        (feature(6, SET, b"short"), Rejection.PAYLOAD_SIZE),
        (feature(7, SET), Rejection.LOGGING_OFF),
        (feature(8, GET, struct.pack("<QQQ", 0, 4096, 4096)), Rejection.LOGGING_OFF),
        (feature(8, GET, b"short"), Rejection.PAYLOAD_SIZE),
    ],
)
def test_bad_requests_are_refused(
    raw: RawClient, rejected: Callable[[Rejection], int], payload: bytes, rejection: Rejection
) -> None:
    assert raw.refused(16, payload) == rejection.error
    assert rejected(rejection) == 1


def test_paths_of_the_specification() -> None:
    """ "Direct State Transitions" and "Complex State Transitions"."""
    assert find_path(S.RUNNING, S.STOP) == [S.STOP]
    assert find_path(S.RUNNING, S.RUNNING) == []
    assert find_path(S.RUNNING, S.STOP_COPY) == [S.STOP, S.STOP_COPY]  # not through PRE_COPY
    assert find_path(S.RUNNING, S.RESUMING) == [S.STOP, S.RESUMING]
    assert find_path(S.STOP_COPY, S.RUNNING) == [S.STOP, S.RUNNING]
    assert find_path(S.PRE_COPY, S.STOP) == [S.RUNNING, S.STOP]
    assert find_path(S.PRE_COPY, S.STOP_COPY) == [S.STOP_COPY]
    assert find_path(S.STOP, S.PRE_COPY) == [S.RUNNING, S.PRE_COPY]
    assert find_path(S.RESUMING, S.STOP_COPY) == [S.STOP, S.STOP_COPY]
    assert find_path(S.STOP_COPY, S.PRE_COPY) is None
    for start in S:
        assert find_path(start, S.ERROR) is None or start is S.ERROR
        assert find_path(start, S.RUNNING_P2P) is None or start is S.RUNNING_P2P


def test_state_moves_to_another_server(client: VfioUserClient, device: Sample, tmp_path: Path) -> None:
    assert client.migration_flags() == MigrationFlag.STOP_COPY | MigrationFlag.PRE_COPY
    assert client.migration_state() is S.RUNNING
    client.write(0, 0, 4, 0xCAFE)
    client.set_migration_state(S.PRE_COPY)
    assert client.migration_read() == b""
    client.write(0, 8, 8, 0x1122334455667788)  # the device still runs
    client.set_migration_state(S.STOP_COPY)
    assert device.paused
    stream = client.migration_read(chunk=100)
    assert stream == device.save()

    other = Sample()
    with VfioUserServer(other, tmp_path / "other") as server, VfioUserClient(server.path) as target:
        target.negotiate()
        target.set_migration_state(S.RESUMING)
        assert other.paused
        target.migration_write(stream, chunk=100)
        target.config_write(4, 2, 0x6)  # QEMU restores the config space in this state
        target.set_migration_state(S.RUNNING)
        assert not other.paused
        assert target.read(0, 0, 4) == 0xCAFE
        assert target.read(0, 8, 8) == 0x1122334455667788
    other.close()


def test_a_stopped_device_takes_no_writes(
    client: VfioUserClient, device: Sample, rejected: Callable[[Rejection], int]
) -> None:
    client.write(0, 0, 4, 1)
    for state in (S.STOP, S.STOP_COPY, S.RESUMING):
        client.set_migration_state(state)
        with pytest.raises(VfioUserError, match="busy"):
            client.write(0, 0, 4, 2)
        client.write(0, 0, 4, 3, posted=True)
        assert client.read(0, 0, 4) == 1
    client.set_migration_state(S.STOP_COPY)
    with pytest.raises(VfioUserError, match="busy"):
        client.config_write(4, 2, 0)
    client.set_migration_state(S.RUNNING)
    client.write(0, 0, 4, 2)
    assert device.bar0.PLAIN == 2
    assert rejected(Rejection.DEVICE_STOPPED) == 7


@pytest.mark.parametrize("spoil", [b"garbage", b""])
def test_a_bad_stream_is_an_error_until_reset(
    client: VfioUserClient, device: Sample, rejected: Callable[[Rejection], int], spoil: bytes
) -> None:
    stream = bytearray(device.save())
    stream[len(stream) // 2] ^= 0xFF
    client.write(0, 0, 4, 0x77)
    client.set_migration_state(S.RESUMING)
    client.migration_write(spoil or bytes(stream))
    with pytest.raises(VfioUserError, match="Bad message"):
        client.set_migration_state(S.RUNNING)
    assert rejected(Rejection.MIGRATION_STREAM) == 1
    assert client.migration_state() is S.ERROR
    with pytest.raises(VfioUserError):
        client.set_migration_state(S.RUNNING)
    client.reset()
    assert client.migration_state() is S.RUNNING
    assert not device.paused
    client.write(0, 0, 4, 5)


def test_data_only_flows_in_its_states(raw: RawClient, rejected: Callable[[Rejection], int]) -> None:
    raw.refused(17, struct.pack("<II", 16, 8))
    raw.refused(18, struct.pack("<II", 16, 8) + bytes(8))
    raw.ask(16, feature(2, SET, struct.pack("<II", S.STOP_COPY, 0)))
    raw.refused(17, struct.pack("<II", 0xFFFF_FFFF, 0xFFFF_FFFF))
    assert rejected(Rejection.MIGRATION_DATA) == 3
    raw.refused(17, struct.pack("<II", 15, 8))
    raw.ask(16, feature(2, SET, struct.pack("<II", S.RESUMING, 0)))
    raw.refused(18, struct.pack("<II", 15, 8) + bytes(8))
    assert rejected(Rejection.ARGSZ) == 2
    raw.refused(18, struct.pack("<II", 16, 8) + bytes(7))
    raw.refused(17, b"")
    assert rejected(Rejection.PAYLOAD_SIZE) == 2


def test_a_client_that_goes_in_mid_migration_leaves_a_running_device(
    server: VfioUserServer, device: Sample
) -> None:
    for state in (S.STOP, S.STOP_COPY, S.RESUMING, S.PRE_COPY):
        with VfioUserClient(server.path) as client:
            client.negotiate()
            client.set_migration_state(state)
            if state is S.RESUMING:
                client.migration_write(b"half a state")
        assert server.wait_idle(30)
        assert not device.paused


def test_dirty_pages_are_logged_and_reported_once(client: VfioUserClient, device: Sample) -> None:
    ram = memory_fd()
    client.dma_map(0x10000, RAM, fd=ram)
    client.start_dirty_log([(0x10000, RAM)])
    device.dma.write(0x10000, b"x")
    device.dma.write(0x10000 + 65 * PAGE - 1, b"xy")
    bitmap = client.dirty_pages(0x10000, RAM)
    assert len(bitmap) == RAM // PAGE // 8
    assert int.from_bytes(bitmap, "little") == 1 | 1 << 64 | 1 << 65
    assert not any(client.dirty_pages(0x10000, RAM))
    device.dma.write(0x10000 + 3 * PAGE, b"x")
    assert client.dirty_pages(0x10000, 16 * PAGE, page_size=4 * PAGE) == (1).to_bytes(8, "little")
    client.stop_dirty_log()
    with pytest.raises(VfioUserError):
        client.dirty_pages(0x10000, RAM)
    client.start_dirty_log()
    with pytest.raises(VfioUserError):
        client.start_dirty_log()
    os.close(ram)


def test_cloud_hypervisor_leaves_room_for_bytes_only(client: VfioUserClient, device: Sample) -> None:
    client.start_dirty_log()
    data = struct.pack("<QQQ", 0, 10 * PAGE, PAGE)
    answer = client.device_feature(Feature.DMA_LOGGING_REPORT, GET, data, room=2)
    assert answer == data + bytes(2)


@pytest.mark.parametrize(
    ("length", "page_size", "argsz", "rejection"),
    [
        (1 << 50, PAGE, 0xFFFF_FFFF, Rejection.ARGSZ),
        (1 << 63, 1 << 62, 4096, Rejection.ARGSZ),
        (64 * PAGE, PAGE, 39, Rejection.ARGSZ),
        (0, PAGE, 4096, Rejection.LOGGING_RANGE),
        (PAGE, 512, 4096, Rejection.LOGGING_RANGE),
        (PAGE, 0, 4096, Rejection.LOGGING_RANGE),
        (PAGE + 1, PAGE, 4096, Rejection.LOGGING_RANGE),
        (3 * PAGE, 3 * PAGE, 4096, Rejection.LOGGING_RANGE),
    ],
)
def test_bad_reports_are_refused(
    raw: RawClient,
    rejected: Callable[[Rejection], int],
    length: int,
    page_size: int,
    argsz: int,
    rejection: Rejection,
) -> None:
    raw.ask(16, feature(6, SET, struct.pack("<QII", PAGE, 0, 0)))
    assert (
        raw.refused(16, feature(8, GET, struct.pack("<QQQ", 0, length, page_size), argsz)) == rejection.error
    )
    assert rejected(rejection) == 1


@pytest.mark.parametrize("factor", [1, 2, 4, 8, 16, 64])
def test_coarser_pages(factor: int) -> None:
    bits = bytes((7 * i * i + i // 3) & (i * 5) & 0xFF for i in range(40))
    flat = [bits[i // 8] >> i % 8 & 1 for i in range(320)]
    expected = [int(any(flat[i : i + factor])) for i in range(0, 320, factor)]
    got = _coarser(bits, factor)
    assert [got[i // 8] >> i % 8 & 1 for i in range(len(expected))] == expected
