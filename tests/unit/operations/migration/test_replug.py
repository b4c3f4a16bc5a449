"""A device of the emulated lane leaves the machine and comes back with its state, or stays as it was."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.engines.outcome import UnplugOutcome
from iolane.errors import IolaneError
from iolane.operations.migration.moved_device import Departed
from iolane.operations.migration.replug import ReplugDevice, bears_disk, come_back
from tests.unit.operations.migration.machine import FakeMachine

ADDER = Path(__file__).parents[4] / "examples" / "adder.py"
ADDER_TEXT = f"{ADDER}:Adder,presentation=msi,id=adder"
DISK_TEXT = "nvme,image=/srv/disk.raw,presentation=msi,id=disk"
FREE = "disk nvme0n1\n"


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="iolane-test-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder) / "iolane"


def adder(machine: FakeMachine) -> ReplugDevice:
    return ReplugDevice(machine, "adder", ADDER_TEXT, "port1")


def disk(machine: FakeMachine) -> ReplugDevice:
    return ReplugDevice(machine, "disk", DISK_TEXT, "port2")


@pytest.mark.parametrize(
    ("text", "bears"),
    [
        (ADDER_TEXT, False),
        (DISK_TEXT, True),
        ("block,image=/x,carrier=vfio-user", True),
        ("net,passt=on,carrier=vfio-user", False),
        ("serial,stream=null", False),
        ("socket=/run/x.sock", True),
    ],
)
def test_which_devices_are_disks(text: str, bears: bool) -> None:
    assert bears_disk(text) is bears


def test_it_leaves_with_its_state_and_its_server_ends(runtime: Path) -> None:
    """The image must be free when the other side opens it."""
    machine = FakeMachine(says=FREE)
    device = disk(machine)
    device.check()
    departed = device.before()
    assert departed == Departed(name="disk", port="port2", state=b"state")
    assert machine.done == ["look", "release", "take out disk", "save disk", "end disk"]


def test_it_comes_back_with_its_state_on_either_side(runtime: Path) -> None:
    here, there = FakeMachine(says=FREE), FakeMachine()
    device = disk(here)
    departed = device.before()
    device.rollback()
    come_back(there, DISK_TEXT, departed)
    for machine in (here, there):
        assert machine.done[-1] == "plug disk at port2"
        assert machine.brought == {"disk": b"state"}
    assert list(runtime.iterdir()) == [], "nothing of the state stays behind"


def test_a_device_that_has_no_disk_needs_no_agent() -> None:
    machine = FakeMachine(says=None)
    adder(machine).check()
    adder(machine).before()
    assert machine.done == ["take out adder", "save adder", "end adder"]


def test_without_an_agent_a_disk_stays() -> None:
    machine = FakeMachine(says=None)
    for step in (disk(machine).check, disk(machine).before):
        with pytest.raises(IolaneError, match=r"whether the guest uses disk is not known: .*no guest agent"):
            step()
    assert machine.done == []


def test_a_disk_in_use_stays() -> None:
    machine = FakeMachine(says=FREE + "used nvme0n1 mounted on /srv\n")
    for step in (disk(machine).check, disk(machine).before):
        with pytest.raises(IolaneError, match=r"unplugging disk is refused: .* mounted on /srv"):
            step()
    assert not any(act.startswith("take out") for act in machine.done)


def test_what_the_engine_would_not_survive_is_refused_before_anything_is_changed() -> None:
    machine = FakeMachine(refused="it presents MSI-X")
    with pytest.raises(IolaneError, match=r"adder can't be taken out .*MSI-X \(.*presentation=msi\)"):
        adder(machine).check()
    served_elsewhere = ReplugDevice(FakeMachine(), "x", "socket=/run/x.sock,id=x", None)
    with pytest.raises(IolaneError, match="x is served by another process"):
        served_elsewhere.check()


@pytest.mark.parametrize("outcome", [UnplugOutcome.REFUSED, UnplugOutcome.NO_ANSWER])
def test_a_guest_that_does_not_let_go_keeps_it(outcome: UnplugOutcome) -> None:
    machine = FakeMachine(outcome=outcome)
    with pytest.raises(IolaneError, match="let go of adder"):
        adder(machine).before()
    assert machine.done == ["take out adder"]


def test_a_state_that_can_not_be_saved_puts_it_back() -> None:
    machine = FakeMachine(fails={"save": "its process was killed"})
    with pytest.raises(IolaneError, match="its process was killed"):
        adder(machine).before()
    assert machine.done == ["take out adder", "save adder", "put back adder"]


def test_a_device_that_does_not_come_back_leaves_its_state_and_the_way_to_plug_it(runtime: Path) -> None:
    machine = FakeMachine()
    departed = adder(machine).before()
    there = FakeMachine(fails={"plug": "all root ports are taken"})
    with pytest.raises(IolaneError) as caught:
        come_back(there, ADDER_TEXT, departed)
    [kept] = runtime.iterdir()
    assert kept.read_bytes() == b"state"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert caught.value.message == f"all root ports are taken; its state is kept in {kept}"
    assert caught.value.remedy is not None
    assert f"state={kept}" in caught.value.remedy
