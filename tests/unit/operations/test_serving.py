"""Serving devices: names, clean-up after a failure half way, reports of devices whose own code fails."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.carriers.control import serving
from iolane.errors import IolaneError
from iolane.operations.serving import DeviceServers
from iolane.operations.tracing import TraceRequest, parse_trace

GRUMPY = '''
from iolane import PciDevice

class Grumpy(PciDevice):
    """Its statistics fail."""
    vendor_id, device_id, class_code = 0x1234, 0x1, 0xFF0000

    def statistics(self):
        raise RuntimeError("not today")

class Stubborn(PciDevice):
    """Can't be made."""
    vendor_id, device_id, class_code = 0x1234, 0x2, 0xFF0000

    def __init__(self):
        raise ValueError("not like this")
'''


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Short, because socket paths are."""
    with tempfile.TemporaryDirectory(prefix="iolane-test-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder) / "iolane"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "grumpy.py"
    path.write_text(GRUMPY)
    return path


def test_every_device_has_a_name(runtime: Path, file: Path) -> None:
    devices = ["edu", "edu", f"{file}:Grumpy", "edu,id=edu2", "edu"]
    with DeviceServers(devices) as servers:
        assert [endpoint.name for endpoint in servers.endpoints] == [
            "edu0",
            "edu1",
            "grumpy0",
            "edu2",
            "edu3",
        ]
        assert all(endpoint.socket.is_socket() for endpoint in servers.endpoints)
        [(_, server)] = serving()
        assert [device.name for device in server.devices] == [served.name for served in servers.served]
        assert [served.device.name for served in servers.served][3] == "edu2"
    assert list(runtime.iterdir()) == []


@pytest.mark.parametrize("process", ["", ",process=own"])
def test_virtual_functions_are_served_beside_their_physical_one(runtime: Path, process: str) -> None:
    with DeviceServers([f"sriov,id=shared{process}", "edu"]) as servers:
        shared, edu = servers.endpoints
        names = [path.name for path in (shared.socket, *shared.virtual)]
        assert names == ["shared.sock", *(f"shared-vf{number}.sock" for number in range(4))]
        assert all(path.is_socket() for path in shared.virtual)
        assert edu.virtual == ()
    assert not any(path.exists() for path in shared.virtual)


def test_a_failure_half_way_leaves_nothing(runtime: Path, file: Path) -> None:
    threads = threading.active_count()
    with (
        pytest.raises(IolaneError, match="Stubborn: not like this"),
        DeviceServers(["edu", f"{file}:Stubborn"]),
    ):
        pass
    assert list(runtime.iterdir()) == []
    assert threading.active_count() == threads


def test_a_failing_own_process_says_why(runtime: Path, file: Path) -> None:
    with pytest.raises(IolaneError) as caught, DeviceServers(["edu", f"{file}:Stubborn,process=own"]):
        pass
    assert str(caught.value) == f"{file}:Stubborn: not like this"
    assert list(runtime.iterdir()) == []


def test_statistics_that_fail_hide_nothing_else(runtime: Path, file: Path) -> None:
    with DeviceServers([f"{file}:Grumpy", "edu"]) as servers:
        [(_, server)] = serving()
        assert [device.name for device in server.devices] == ["grumpy0", "edu0"]
        assert server.devices[0].statistics == {}
        assert servers.served[0].device.error_count == 1


def test_options_reach_a_process_of_its_own(runtime: Path, tmp_path: Path) -> None:
    image = tmp_path / "a,b.raw"
    image.write_bytes(bytes(1 << 20))
    wanted = f"nvme,image={str(image).replace(',', ',,')},read_only=on,process=own,id=disk"
    with DeviceServers([wanted]) as servers:
        [report] = servers.reports()
        assert (report.name, report.type) == ("disk", "Nvme")
        assert servers.served == []
    assert list(runtime.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("fields", TraceRequest("fields")),
        ("registers,bar0.*", TraceRequest("registers", "bar0.*")),
        ("registers,bar0.A,bar0.B", TraceRequest("registers", "bar0.A,bar0.B")),
        ("off,", TraceRequest("off")),
    ],
)
def test_what_to_trace(text: str, request_: TraceRequest) -> None:
    assert parse_trace(text) == request_


def test_no_such_trace_level() -> None:
    with pytest.raises(IolaneError, match=r"no trace level is called 'field' \(did you mean fields\?\)"):
        parse_trace("field")
