"""Serving devices: names, clean-up after a failure half way, reports of devices whose own code fails."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.carriers.control import ControlClient, find_device, serving
from iolane.carriers.vfio_user import VfioUserClient
from iolane.devices.registry import create, create_virtio
from iolane.errors import IolaneError
from iolane.operations.serving import DeviceServers
from iolane.operations.tracing import TraceRequest, parse_trace

ADDER = Path(__file__).parents[3] / "examples" / "adder.py"
PROCESSES = pytest.mark.parametrize("process", ["", ",process=own"])
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


@PROCESSES
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


@PROCESSES
def test_a_device_goes_on_from_a_saved_state(runtime: Path, tmp_path: Path, process: str) -> None:
    """Registers of its BARs come back; a guest that has it keeps it from being saved."""
    file, text = tmp_path / "a,b.state", f"{ADDER}:Adder,id=adder{process}"
    with DeviceServers([text]) as servers:
        with VfioUserClient(servers.endpoints[0].socket) as client:
            client.negotiate()
            client.write(0, 0x00, 4, 40)
            client.write(0, 0x04, 4, 2)
            client.write(0, 0x0C, 4, 1)
        save(file)
    with DeviceServers([f"{text},state={str(file).replace(',', ',,')}"]) as servers:
        with VfioUserClient(servers.endpoints[0].socket) as client:
            client.negotiate()
            client.reset()
            assert [client.read(0, offset, 4) for offset in (0x00, 0x04, 0x08)] == [40, 2, 42]


def save(file: Path) -> None:
    path, _ = find_device("adder")
    with ControlClient(path) as client:
        client.save("adder", file)


def test_a_device_that_a_guest_has_is_not_saved(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iolane.operations.served_device.CLEANUP_S", 0.01)
    with DeviceServers([f"{ADDER}:Adder,id=adder"]) as servers:
        with VfioUserClient(servers.endpoints[0].socket) as client:
            client.negotiate()
            with pytest.raises(IolaneError, match=r"adder is not saved: a guest has it \(unplug it first\)"):
                save(tmp_path / "state")
            assert not (tmp_path / "state").exists()


def test_what_is_no_state_is_refused_in_one_line_and_gives_the_image_back(
    runtime: Path, tmp_path: Path
) -> None:
    file, image = tmp_path / "state", tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    with pytest.raises(IolaneError, match=r"^nvme: .*state: no such file or directory$"):
        create(f"nvme,image={image},state={file}")
    file.write_bytes(bytes(64))
    with pytest.raises(IolaneError, match=r"^nvme: this is no state saved by iolane$"):
        create(f"nvme,image={image},state={file}")
    with pytest.raises(IolaneError, match="with vhost-user QEMU moves the state"):
        create_virtio(f"block,image={image},state={file}")
    with pytest.raises(IolaneError, match="state can't be given with socket="):
        create(f"socket={file},state={file}")
    create(f"nvme,image={image}").close()


def test_a_stand_in_is_told_to_the_front_end_alone(runtime: Path) -> None:
    """VIRTIO_NET_F_STANDBY is QEMU's to offer; net_failover goes by the address, so there must be one."""
    net = f"net,peer=listen:{runtime.parent / 'peer'}"
    with DeviceServers([f"{net},standby=on,mac=02:00:00:00:00:01"]) as servers:
        kind = servers.endpoints[0].virtio
        assert kind is not None
        assert (kind.standby, kind.mac) == (True, "02:00:00:00:00:01")
    for options, reason in (
        ("standby=on", r"a stand-in has the address of the function .* \(add mac=\)"),
        ("standby=yes,mac=02:00:00:00:00:01", "standby is on or off, not 'yes'"),
    ):
        with pytest.raises(IolaneError, match=reason), DeviceServers([f"{net},{options}"]):
            pass
