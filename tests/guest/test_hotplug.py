"""docs/hotplug.md does what its table says: each line plugged in and unplugged, in one guest."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from iolane import IolaneError, Machine, MachineDescription, UnplugOutcome
from iolane.carriers.control import EventKind, MachineState, PluggedDevice

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/hotplug.md"
ENGINES = ("QEMU", "libvirt")
POWER_OFF = "if [ $(cat $s/power) = 1 ]; then echo 0 > $s/power; fi"
FUNCTIONS = "ls /sys/bus/pci/devices | wc -l"
pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    device: str
    lane: str
    carrier: str
    engine: str
    plug: str
    unplug: str
    tested_by: str


def lines() -> list[Line]:
    """The table."""
    found = []
    for row in re.findall(r"^\| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE):
        cells = [cell.strip() for cell in row.split("|")]
        if len(cells) == 7 and cells[3] in ENGINES:
            found.append(Line(*cells))
    return found


HERE = [line for line in lines() if not line.tested_by and line.engine == "QEMU"]
STAYING = [line for line in HERE if line.unplug.startswith("refused")]
REASONS = {
    "MSI-X": "presents MSI-X, and QEMU aborts",
    "virtual functions": "virtual functions, which are made with the machine",
    "no front end": "no vhost-user front end of QEMU",
}
NOTES = {
    "yes": "",
    "yes, with MSI": "presents MSI in place",
    "yes, with the pin": "presents the interrupt pin",
}


def test_the_table_is_read_whole() -> None:
    assert len(HERE) == 15
    for line in lines():
        if line not in HERE:
            assert (ROOT / line.tested_by.strip("`")).is_file()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with Machine(MachineDescription(memory_mib=256, ports=1 + len(STAYING))) as started:
        yield started


@pytest.fixture
def text(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """What is plugged in, with an image and a peer of its own."""
    line: Line = request.param
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(4 << 20))
    with tempfile.TemporaryDirectory(prefix="iolane-peer-") as folder:
        written = line.device.strip("`").replace("IMAGE", str(image))
        yield written.replace("PEER", f"listen:{folder}/peer").replace("examples/", f"{ROOT}/examples/")


def functions(machine: Machine) -> int:
    """How many PCI functions the guest has."""
    return int(machine.check(FUNCTIONS))


def until(machine: Machine, count: int) -> None:
    """The guest finds out by itself, soon."""
    deadline = time.monotonic() + 60
    while functions(machine) != count:
        assert time.monotonic() < deadline, f"{functions(machine)} functions, not {count}"


@contextlib.contextmanager
def events_of(machine: Machine) -> Iterator[Callable[[], list[tuple[str, str | None]]]]:
    """What has happened since, each with its device."""
    with machine.events() as events:
        told: list[tuple[str, str | None]] = []

        def happened() -> list[tuple[str, str | None]]:
            while (event := events.get(0)) is not None:
                told.append((event.kind.value, event.device))
            return told

        yield happened


LINES = [line for line in HERE if line not in STAYING]


@pytest.mark.parametrize(("line", "text"), [(line, line) for line in LINES], indirect=["text"])
def test_a_line_of_the_table(machine: Machine, line: Line, text: str) -> None:
    before = functions(machine)
    with events_of(machine) as happened:
        if line.plug.startswith("refused: "):
            with pytest.raises(IolaneError, match=REASONS[line.plug.removeprefix("refused: ")]):
                machine.plug(f"{text},id=it")
            assert happened() == []
        else:
            plugged = machine.plug(f"{text},id=it")
            check_plugged(plugged, line)
            until(machine, before + 1)
            assert machine.unplug("it", timeout=60) == UnplugOutcome(line.unplug)
            assert happened() == [("plugged", "it"), ("unplugged", "it")]
    until(machine, before)
    assert machine.report().devices == [], "nothing is left of it"


def check_plugged(plugged: PluggedDevice, line: Line) -> None:
    assert (plugged.lane, plugged.carrier) == (line.lane, line.carrier)
    assert NOTES[line.plug] in plugged.note
    assert bool(plugged.note) is bool(NOTES[line.plug])


def test_what_has_no_room_or_fails_leaves_nothing(machine: Machine) -> None:
    for number in range(1 + len(STAYING)):
        machine.plug(f"edu,id=edu{number}")
    with pytest.raises(IolaneError, match="all root ports are taken"):
        machine.plug("serial,id=late")
    assert machine.report().free_ports == 0
    with pytest.raises(IolaneError, match="a device edu0 is plugged in already"):
        machine.plug("edu,id=edu0")
    with pytest.raises(IolaneError, match="no device late is plugged in"):
        machine.unplug("late")
    for number in range(1 + len(STAYING)):
        machine.unplug(f"edu{number}", 60).require(f"edu{number}")
    assert machine.report().free_ports == 1 + len(STAYING)


def test_a_guest_that_answers_later(machine: Machine, tmp_path: Path) -> None:
    """It is asked while it stands still; it lets go when it goes on, and the image is free then."""
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(4 << 20))
    machine.plug(f"nvme,image={image},id=disk")
    machine.check("while [ ! -b /dev/nvme0n1 ]; do sleep 0.1; done")
    with events_of(machine) as happened:
        machine.pause()
        assert machine.state is MachineState.PAUSED
        assert machine.unplug("disk", timeout=0.5) is UnplugOutcome.NO_ANSWER
        assert [device.leaving for device in machine.report().devices] == [True]
        machine.resume()
        eventually(lambda: machine.report().devices == [])
        eventually(lambda: ("unplugged", "disk") in happened())
        assert happened() == [
            *(("paused", None), ("unplug-unanswered", "disk"), ("resumed", None), ("unplugged", "disk"))
        ]
    machine.plug(f"block,image={image},id=disk")
    machine.unplug("disk", 60).require("disk")


def test_a_guest_that_powers_the_slot_off_itself(machine: Machine) -> None:
    before = functions(machine)
    machine.plug("edu,id=own")
    until(machine, before + 1)
    with events_of(machine) as happened:
        machine.check(f"for s in /sys/bus/pci/slots/*; do {POWER_OFF}; done")
        eventually(lambda: machine.report().devices == [])
        eventually(lambda: happened() == [("unplugged", "own")])


def test_a_device_whose_server_is_killed(machine: Machine) -> None:
    machine.plug("edu,process=own,id=edu")
    assert [report.name for report in machine.devices.reports()] == ["edu"]
    [process] = [each.process for each in machine.devices.servers.endpoints if each.process is not None]
    with machine.events() as events:
        os.kill(process.pid, signal.SIGKILL)
        event = events.get(30)
        assert event is not None
        assert (event.kind, event.device) == (EventKind.SERVER_LOST, "edu")
        assert "unplug edu" in event.text
    machine.unplug("edu", 60).require("edu")
    machine.plug("edu,id=edu")
    machine.unplug("edu", 60).require("edu")


@pytest.mark.parametrize(("line", "text"), [(line, line) for line in STAYING], indirect=["text"])
def test_a_line_of_what_stays(machine: Machine, line: Line, text: str) -> None:
    before = functions(machine)
    plugged = machine.plug(f"{text},id=stays")
    check_plugged(plugged, line)
    assert plugged.unplug_refused is not None
    until(machine, before + 1)
    with pytest.raises(IolaneError, match=REASONS[line.unplug.removeprefix("refused: ")]):
        machine.unplug("stays")
    until(machine, before + 1)


def test_the_end(machine: Machine) -> None:
    with machine.events() as events:
        machine.powerdown()
        kinds = [event.kind for event in events]
    assert kinds == [EventKind.SHUTDOWN, EventKind.ENDED]
    assert machine.state is MachineState.ENDED


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
