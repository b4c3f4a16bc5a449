"""A server's life: its socket, one client after another, its end."""

from __future__ import annotations

import os
import socket
import stat
import struct
import threading
import time
from pathlib import Path

import pytest

from iolane.carriers.vfio_user import EventKind, SocketError, VfioUserClient, VfioUserError, VfioUserServer
from iolane.errors import IolaneError
from iolane.model.interrupts import InterruptIndex, TableOwner
from iolane.model.workers import Workers
from tests.unit.carriers.vfio_user.sample import PAGE, RawClient, Sample, memory_fd, open_fds

PROMPT = 5
"""Seconds; a stop that waited for the client would never end."""


def test_state_survives_a_client_and_its_memory_does_not(server: VfioUserServer, device: Sample) -> None:
    ram = memory_fd()
    before = open_fds()
    for turn in range(3):
        with VfioUserClient(server.path) as client:
            client.negotiate()
            assert server.connected
            assert client.read(0, 0, 4) == turn
            client.write(0, 0, 4, turn + 1)
            client.dma_map(0, PAGE, fd=ram)
            for fd in client.connect_irqs(InterruptIndex.MSIX, 20):
                os.close(fd)
        assert server.wait_idle(30)
        assert not server.connected
        assert device.dma.maps == []
        assert device.dma.indirect is None
        assert not device.interrupts.group(InterruptIndex.MSIX).connected
        assert device.disconnects == turn + 1
        assert not device.paused
    assert open_fds() == before
    assert server.statistics.connections == 3
    os.close(ram)


def test_the_second_client_waits_for_the_first(server: VfioUserServer) -> None:
    with VfioUserClient(server.path) as first:
        first.negotiate()
        second = VfioUserClient(server.path, timeout=0.2)
        with pytest.raises(VfioUserError, match="did not answer in time"):
            second.negotiate()
        assert first.read(0, 0, 4) == 0
    second.socket.settimeout(30)
    assert second.receive().command == 1
    second.close()


def test_a_silent_client_does_not_keep_the_next_one_waiting(
    server: VfioUserServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iolane.carriers.vfio_user.connection.GREETING_S", 1)
    with RawClient(server.path) as silent, VfioUserClient(server.path) as client:
        client.negotiate()
        assert silent.ended()
        time.sleep(1.2)  # once negotiated, silence is fine
        assert client.read(0, 0, 4) == 0


def test_events(server: VfioUserServer) -> None:
    told = threading.Semaphore(0)
    server.on_event.add(lambda event: told.release())
    with RawClient(server.path):
        pass  # a probe
    with VfioUserClient(server.path) as client:
        client.negotiate()
    assert told.acquire(timeout=30)
    assert told.acquire(timeout=30)
    assert [event.kind for event in server.events] == [EventKind.CONNECTED, EventKind.DISCONNECTED]


def test_reset(client: VfioUserClient, device: Sample) -> None:
    client.write(0, 0, 4, 7)
    client.reset()
    assert client.read(0, 0, 4) == 0
    assert client.config_read(4, 2) == 0
    assert len(device.resets) == 1


def test_the_client_owns_the_msix_table(server: VfioUserServer, device: Sample) -> None:
    assert device.interrupts.table_owner is TableOwner.CARRIER


def test_stop_is_prompt_while_the_client_is_silent(device: Sample, tmp_path: Path) -> None:
    server = VfioUserServer(device, tmp_path / "s")
    server.start()
    with VfioUserClient(server.path) as client:
        client.negotiate()
        start = time.monotonic()
        server.stop()
        assert time.monotonic() - start < PROMPT
        with pytest.raises(VfioUserError):
            client.read(0, 0, 4)
    assert not server.path.exists()
    assert not server.running
    server.stop()


def test_stop_is_prompt_while_the_client_takes_no_replies(device: Sample, tmp_path: Path) -> None:
    server = VfioUserServer(device, tmp_path / "s")
    server.start()
    with RawClient(server.path) as raw:
        raw.negotiate()
        raw.socket.setblocking(False)
        request = struct.pack("<HHIIIQII", 7, 9, 32, 0, 0, 0, 0, 4096)
        try:
            while True:
                raw.socket.send(request)
        except BlockingIOError:
            pass  # both sides' buffers are full
        start = time.monotonic()
        server.stop()
        assert time.monotonic() - start < PROMPT


def test_stop_before_any_client_and_start_again(device: Sample, tmp_path: Path) -> None:
    server = VfioUserServer(device, tmp_path / "s")
    for _ in range(3):
        server.start()
        with pytest.raises(IolaneError, match="runs already"):
            server.start()
        with VfioUserClient(server.path) as client:
            client.negotiate()
        server.stop()


def test_stop_from_a_handler_of_the_device(device: Sample, tmp_path: Path) -> None:
    server = VfioUserServer(device, tmp_path / "s")
    server.start()
    thread = server._thread
    assert thread is not None
    region = device.regions[0]
    assert region is not None

    def stop_and_read(offset: int, size: int) -> int:
        server.stop()
        return 0

    region.read = stop_and_read
    with VfioUserClient(server.path) as client:
        client.negotiate()
        with pytest.raises(VfioUserError):
            client.read(0, 0, 4)
    thread.join(30)
    assert not thread.is_alive()


def test_tasks_need_workers_and_get_them(device: Sample, tmp_path: Path) -> None:
    with Workers(1) as workers:
        with VfioUserServer(device, tmp_path / "s", workers=workers) as server:
            assert not device.clock.manual
            with VfioUserClient(server.path) as client:
                client.negotiate()
                client.config_write(4, 2, 6)
                ram = memory_fd(PAGE, b"\1\2\3\4")
                client.dma_map(0, PAGE, fd=ram)
                client.write(0, 0x1C, 4, 3)
                assert device.kicked.acquire(timeout=30)
                assert client.read(0, 0x18, 4) == 0x04030201
                os.close(ram)
        assert device.clock.manual


def test_trace_may_exchange_a_regions_callables_at_any_time(client: VfioUserClient, device: Sample) -> None:
    region = device.regions[0]
    assert region is not None
    before = region.read
    region.read = lambda offset, size: 0x12345678
    assert client.read(0, 0, 4) == 0x12345678
    region.read = before
    assert client.read(0, 0, 4) == 0


# The socket's path.


def refused(device: Sample, path: Path) -> str:
    with pytest.raises(SocketError) as caught:
        VfioUserServer(device, path).start()
    text = str(caught.value)
    assert "\n" not in text
    assert not device.clock.timers
    return text


def test_a_socket_in_use_is_left_alone(server: VfioUserServer) -> None:
    assert "in use" in refused(Sample(), server.path)
    with VfioUserClient(server.path) as client:
        client.negotiate()


def test_a_stale_socket_is_replaced(device: Sample, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with VfioUserServer(device, path) as server, VfioUserClient(path) as client:
        client.negotiate()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert server.running
    assert not path.exists()


def test_a_file_is_not_overwritten(device: Sample, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    assert "no socket" in refused(device, path)
    assert path.read_text() == "data"


def test_a_missing_folder(device: Sample, tmp_path: Path) -> None:
    text = refused(device, tmp_path / "a/b/s")
    assert "folder does not exist" in text
    assert "mkdir -p" in text


def test_a_path_that_is_too_long(device: Sample, tmp_path: Path) -> None:
    assert "longer than 107" in refused(device, tmp_path / ("x" * 120))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(device: Sample, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "no permission" in refused(device, tmp_path / "s")
    finally:
        tmp_path.chmod(0o700)


def test_no_permission_is_one_line(device: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere: the kernel's answer, without the kernel."""

    class Forbidden(socket.socket):
        def bind(self, address: object) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("iolane.carriers.listener.socket.socket", Forbidden)
    assert "no permission" in refused(device, tmp_path / "s")


def test_another_servers_socket_is_not_removed(device: Sample, tmp_path: Path) -> None:
    first = VfioUserServer(device, tmp_path / "s")
    first.start()
    first.path.unlink()
    with VfioUserServer(Sample(), tmp_path / "s"):
        first.stop()
        assert first.path.exists()


def test_a_client_without_a_server(tmp_path: Path) -> None:
    with pytest.raises(VfioUserError, match="no vfio-user server"):
        VfioUserClient(tmp_path / "nothing")


def test_no_thread_is_left(device: Sample, tmp_path: Path) -> None:
    before = threading.active_count()
    with VfioUserServer(device, tmp_path / "s") as server, VfioUserClient(server.path) as client:
        client.negotiate()
    assert threading.active_count() == before


def test_a_client_with_unread_messages_sees_an_end_and_no_reset(server: VfioUserServer) -> None:
    """QEMU 11's client aborts on ECONNRESET."""
    with RawClient(server.path) as client:
        client.socket.sendall(struct.pack("<HHIII", 1, 1, 8, 0, 0))  # too short: the server ends it
        for _ in range(64):
            try:
                client.socket.sendall(bytes(4096))
            except BrokenPipeError:
                break
        client.socket.settimeout(30)
        while client.socket.recv(4096):
            pass


@pytest.mark.parametrize("command", [9, 10])
def test_no_region_is_touched_before_version(server: VfioUserServer, device: Sample, command: int) -> None:
    """ "VFIO_USER_VERSION" comes first; the fast path of reads and writes knows that, too."""
    with RawClient(server.path) as client:
        client.send(command, struct.pack("<QII", 0, 0, 4) + (bytes(4) if command == 10 else b""))
        assert client.ended()
    assert server.wait_idle(30)
    assert server.statistics.as_dict()["rejected_version_first"] == 1
    assert (server.statistics.reads, server.statistics.writes) == (0, 0)
