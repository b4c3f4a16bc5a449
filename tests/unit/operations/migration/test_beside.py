"""What left a machine is put in at the destination: what the offer named, made as the preflight allowed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.operations.machine.description import DeviceDescription
from iolane.operations.migration.beside import bring
from iolane.operations.migration.moved_device import Departed
from iolane.operations.migration.offer import LaterDevice, Offer, OfferedFunction
from iolane.operations.migration.preflight import Welcome, description_of, findings
from iolane.operations.passthrough import parse_pass
from tests.unit.operations.migration.machine import FakeMachine

ADDER = Path(__file__).parents[4] / "examples" / "adder.py"
LEFT = Departed(name="adder", port="port3", state=b"state")
LATER = LaterDevice(id="adder", text=f"{ADDER}:Adder,presentation=msi,id=adder")


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="iolane-test-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder) / "iolane"


def problems(later: LaterDevice, welcome: Welcome) -> list[str]:
    offer = Offer(name="x", engine="11", accelerator="tcg", memory_mib=1, cpus=1, ports=4, later=[later])
    return [str(each) for each in findings(offer, welcome, "11", {"tcg"})[0]]


def test_it_comes_at_its_port_with_its_state() -> None:
    machine = FakeMachine()
    assert bring(machine, [LEFT], [LATER], Welcome()) == []
    assert machine.done == ["plug adder at port3"]
    assert machine.brought == {"adder": b"state"}


def test_it_is_made_as_the_operator_says() -> None:
    made: list[str] = []

    class Machine(FakeMachine):
        def plug(self, text: str, port: str | None) -> None:
            made.append(text.partition(",state=")[0])

    welcome = Welcome(devices={"adder": "edu,id=other"})
    assert bring(Machine(), [LEFT], [LATER], welcome) == []
    assert made == ["edu,id=adder"], "with the id that it had"


def test_what_was_not_offered_is_not_made() -> None:
    """A source that says another thing after the preflight than before it."""
    machine = FakeMachine()
    stranger = Departed(name="stranger", state=b"")
    assert bring(machine, [stranger, LEFT, LEFT], [LATER], Welcome()) == [
        "stranger was not plugged in here: it was not offered",
        "adder was not plugged in here: it was not offered",
    ]
    assert machine.done == ["plug adder at port3"]


def test_one_that_fails_keeps_no_other_from_it_and_keeps_its_state(runtime: Path) -> None:
    machine = FakeMachine(fails={"plug adder": "no port is free"})
    disk = LaterDevice(id="disk", text="edu,id=disk")
    [problem] = bring(machine, [LEFT, Departed(name="disk", state=b"2")], [LATER, disk], Welcome())
    [kept] = runtime.iterdir()
    assert f"its state is kept in {kept} (iolane plug MACHINE '" in problem
    assert machine.brought == {"disk": b"2"}


def test_what_does_not_come_is_said() -> None:
    assert bring(FakeMachine(), [], [LATER], Welcome()) == ["adder did not come along"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LATER.text, "is code of the source's"),
        ("nvme,image=/srv/none.raw", "there is no image /srv/none.raw"),
        ("nonsense", "no device is called 'nonsense'"),
        ("edu,state=/etc/passwd", "comes with its state"),
        ("socket=/run/x.sock", "comes with its state"),
        (None, "there is no function for x here"),
    ],
)
def test_what_can_not_come_is_found_before_anything_moves(text: str | None, problem: str) -> None:
    [found] = problems(LaterDevice(id="x", text=text), Welcome(folders=None))
    assert problem in found


def test_files_of_the_source_are_not_opened(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(512))
    later = LaterDevice(id="disk", text=f"nvme,image={image}")
    [closed] = problems(later, Welcome())
    assert "the source may name no files" in closed
    assert problems(later, Welcome(folders=[tmp_path])) == []
    assert problems(later, Welcome(devices={"disk": f"nvme,image={image}"})) == []


def test_the_operator_learns_of_a_name_that_the_machine_does_not_have() -> None:
    welcome = Welcome(devices={"addr": "edu", "adder": "edu"})
    assert problems(LATER, welcome) == ["--device addr: the machine has no such device"]
    given = Welcome(devices={"adder": "edu"}, functions={"nick": parse_pass("01:00.0,id=nick")})
    assert problems(LATER, given) == ["--pass ...,id=nick: the machine has no such device"]


def test_a_function_that_moves_itself_is_in_the_machine_from_the_start() -> None:
    """Its driver on both hosts moves its state (VFIO_DEVICE_FEATURE_MIGRATION); no such hardware was seen."""
    offer = Offer(
        name="x",
        engine="11",
        accelerator="tcg",
        memory_mib=1,
        cpus=1,
        ports=4,
        functions=[OfferedFunction(id="nic", port="port2")],
    )
    [missing] = findings(offer, Welcome(), "11", {"tcg"})[0]
    assert str(missing).startswith("function nic: there is no function for nic here")
    given = Welcome(functions={"nic": parse_pass("03:10.2,id=nic")})
    assert description_of(offer, given, "x").placed_functions == [
        DeviceDescription("03:10.2,id=nic", "port2")
    ]
