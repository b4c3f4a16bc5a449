"""What becomes of a device's text when it is plugged in; devices that come and go alone."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.carriers.control import ControlServer, serving
from iolane.devices.specification import parse
from iolane.errors import IolaneError
from iolane.operations.machine import DeviceDescription, MachineDescription
from iolane.operations.machine.anchor import anchored
from iolane.operations.machine.devices import MachineDevices
from iolane.operations.machine.presentation import removable

ROOT = Path(__file__).resolve().parents[4]
ADDER = f"{ROOT}/examples/adder.py:Adder"
CLOSED = '''
from iolane import Msix, PciDevice

class Closed(PciDevice):
    """Takes no presentation."""
    vendor_id, device_id, class_code = 0x1234, 0x2, 0xFF0000
    msix = Msix(vectors=1)

    def __init__(self):
        super().__init__()
'''


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("nvme,image=disk.raw,serial=a/b", "nvme,image=/there/disk.raw,serial=a/b"),
        ("nvme,image=/abs.raw,id=x,process=own", "nvme,image=/abs.raw,id=x,process=own"),
        ("socket=s.sock,id=a", "id=a,socket=/there/s.sock"),
        ("block,socket=s,carrier=vhost-user", "block,socket=/there/s,carrier=vhost-user"),
        ("rng,source=r,,andom", "rng,source=/there/r,,andom"),
        ("edu", "edu"),
    ],
)
def test_relative_paths_are_where_the_user_stands(text: str, whole: str) -> None:
    assert anchored(parse(text), Path("/there")).whole_text() == whole


def test_a_file_with_a_class_is_where_the_user_stands() -> None:
    assert anchored(parse("examples/adder.py:Adder,id=a"), ROOT).whole_text() == f"{ADDER},id=a"
    with pytest.raises(IolaneError, match="no such file"):
        anchored(parse("examples/adder.py:Adder"), Path("/nonexistent"))


@pytest.mark.parametrize(
    ("text", "presentation", "note"),
    [
        ("nvme,image=/a", "msi", "presents MSI in place of MSI-X"),
        (ADDER, "msi", "presents MSI in place of MSI-X"),
        ("rng", "intx", "presents the interrupt pin in place of MSI-X"),
        ("block,image=/a,carrier=vfio-user", "intx", "the interrupt pin"),
        ("nvme,image=/a,presentation=msix", "msix", None),
        ("block,image=/a", None, None),
        ("edu", None, None),
        ("serial", None, None),
        ("socket=/s", None, None),
        ("{closed}", None, "with which QEMU does not survive an unplug; its class takes no presentation="),
    ],
)
def test_what_is_plugged_in_can_be_unplugged(
    tmp_path: Path, text: str, presentation: str | None, note: str | None
) -> None:
    (tmp_path / "closed.py").write_text(CLOSED)
    wanted, said = removable(parse(text.format(closed=f"{tmp_path}/closed.py:Closed")))
    assert wanted.options.get("presentation") == (None if presentation is None else [presentation])
    assert (said is None) is (note is None)
    assert note is None or note in (said or "")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Short, because socket paths are."""
    with tempfile.TemporaryDirectory(prefix="iolane-test-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder) / "iolane"


def told() -> list[str]:
    """The devices on this process's control socket."""
    return [device.name for _, server in serving() for device in server.devices]


def test_devices_come_and_go_alone(runtime: Path, tmp_path: Path) -> None:
    threads = threading.active_count()
    control = ControlServer([])
    description = MachineDescription(devices=["edu", DeviceDescription("rng", port="port7")])
    with MachineDevices(description, "web", control) as devices, control:
        assert [(device.id, device.port) for device in devices.devices] == [("edu0", None), ("rng0", "port7")]
        held, note = devices.add(ADDER)
        assert (held.device.id, held.lane, held.carrier, held.hot) == (
            "adder0",
            "emulated",
            "vfio-user",
            True,
        )
        assert note is not None
        assert told() == ["edu0", "rng0", "adder0"]
        sockets = [each.endpoint for each in devices.held]
        assert all(path is not None and path.is_socket() for path in sockets)
        with pytest.raises(IolaneError, match="a device adder0 is plugged in already"):
            devices.add(f"{ADDER},id=adder0")
        assert told() == ["edu0", "rng0", "adder0"], "the one that was there is untouched"
        devices.remove("adder0")
        devices.remove("adder0")
        assert held.endpoint is not None
        assert not held.endpoint.exists()
        assert told() == ["edu0", "rng0"]
        again, _ = devices.add(f"{ADDER},process=own,id=adder0")
        assert again.endpoint == held.endpoint
        devices.remove("adder0")
        assert not held.endpoint.exists()
        ours, passed = devices.described(devices.devices)
        assert [each.text for each in ours] == ["edu,id=edu0", "rng,id=rng0"]
        assert [each.port for each in ours] == [None, "port7"]
        assert passed == []
    assert list(runtime.iterdir()) == []
    assert threading.active_count() == threads


def test_a_device_that_can_not_be_made_leaves_nothing(runtime: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.raw"
    image.write_bytes(bytes(1 << 20))
    control = ControlServer([])
    with MachineDevices(MachineDescription(), "web", control) as devices, control:
        with pytest.raises(IolaneError, match="there is no image"):
            devices.add("nvme,image=/nonexistent,id=a")
        with pytest.raises(IolaneError, match="is not a name"):
            devices.add("edu,id=1")
        with pytest.raises(IolaneError, match="no vhost-user front end of QEMU"):
            devices.add("console,carrier=vhost-user,id=a")
        devices.add(f"block,image={image},id=a")
        with pytest.raises(IolaneError, match="a and b both write to"):
            devices.add(f"block,image={image},id=b")
        assert [each.device.id for each in devices.held] == told() == ["a"]
        assert sorted(path.name for path in runtime.glob("run-*/*.sock")) == ["a.sock"]


def test_pausing_holds_what_the_engine_does_not(runtime: Path) -> None:
    control = ControlServer([])
    with MachineDevices(MachineDescription(devices=["edu", "serial"]), "web", control) as devices:
        devices.pause()
        devices.pause()
        assert [served.device.paused for served in devices.servers.served] == [True, True]
        devices.resume()
        assert [served.device.paused for served in devices.servers.served] == [False, False]
        devices.resume()
        devices.pause()  # a machine that is ended while it is paused


@pytest.mark.parametrize(
    ("description", "words"),
    [
        (MachineDescription(name="two words"), "is no name for a machine"),
        (MachineDescription(kernel="/nonexistent"), "no such kernel"),
        (MachineDescription(initrd="/nonexistent"), "no such file"),
        (MachineDescription(boot="disk", append="quiet"), "brings its own kernel"),
        (MachineDescription(modules=["/nonexistent/m.c"]), "no such file"),
    ],
)
def test_descriptions_that_can_not_be(description: MachineDescription, words: str) -> None:
    with pytest.raises(IolaneError, match=words):
        description.check()
