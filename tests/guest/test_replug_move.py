"""A machine with an emulated NVMe and the adder moves: both leave it, and come back there with their state.

One machine for all of it: refusals first, then a move that does not come about, then one that does.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from iolane.carriers.control import EventKind
from iolane.devices.nvme import Nvme
from iolane.engines.outcome import UnplugOutcome
from iolane.errors import IolaneError
from iolane.operations.machine import Machine, MachineDescription
from iolane.operations.migration.source import SourcePhase
from iolane.operations.migration.staying import staying
from tests.guest.destination import Destination

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

EXAMPLES = Path(__file__).parents[2] / "examples"
ADDER = f"{EXAMPLES / 'adder.py'}:Adder,presentation=msi"
MIB = 1 << 20
SUM = "$(echo /sys/bus/pci/drivers/adder/0000:*/sum)"
HERE = "i=0; until [ -e {0} ]; do sleep 0.2; i=$((i+1)); [ $i -lt 500 ] || exit 1; done"
COMMAND = 240.0


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Short, because socket paths are."""
    with tempfile.TemporaryDirectory(prefix="iolane-test-") as name:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", name)
            yield Path(name)


@pytest.fixture(scope="module")
def image(folder: Path) -> Path:
    path = folder / "disk.raw"
    path.write_bytes(os.urandom(8 * MIB))
    return path


@pytest.fixture(scope="module")
def machine(folder: Path, image: Path) -> Iterator[Machine]:
    description = MachineDescription(
        name="here",
        memory_mib=192,
        devices=[f"nvme,image={image},presentation=msi,id=disk", f"{ADDER},id=adder,process=own"],
        modules=["ext4", str(EXAMPLES / "adder_driver")],
    )
    with Machine(description) as started:
        yield started


def nvme(machine: Machine) -> Nvme:
    served = machine.devices.served("disk")
    assert served is not None
    assert isinstance(served.device, Nvme)
    return served.device


def remembered(device: Nvme) -> dict[str, Any]:
    """What an NVMe controller counts and logs."""
    with device.lock:
        health = msgspec.to_builtins(device.state.health)
        errors = msgspec.to_builtins(device.state.errors)
    for name in ("reads", "bytes_read", "busy_ns", "powered_ns"):  # the guest looks at a disk that comes
        health.pop(name)
    return {"health": health, "errors": errors, "uuid": str(device.namespaces[1].uuid)}


def use(machine: Machine) -> dict[str, Any]:
    """Leave something to remember in both devices."""
    machine.check(HERE.format(SUM), timeout=COMMAND)
    assert machine.check(f"echo 40 2 >{SUM}; cat {SUM}", timeout=COMMAND) == "42\n"
    machine.check(HERE.format("/dev/nvme0n1"), timeout=COMMAND)
    machine.check(
        "dd if=/dev/urandom of=/dev/nvme0n1 bs=64k count=16 oflag=direct 2>/dev/null", timeout=COMMAND
    )
    device = nvme(machine)
    with device.lock:
        device.log_pages.record_error(sqid=1, cid=7, status=0x80, location=0, lba=5, nsid=1)
    return remembered(device)


def check_back(machine: Machine, before: dict[str, Any], image: Path) -> None:
    """Both are there as they were, and work."""
    machine.check(HERE.format(SUM), timeout=COMMAND)
    assert machine.check(f"cat {SUM}", timeout=COMMAND) == "42\n"
    machine.check(HERE.format("/dev/nvme0n1"), timeout=COMMAND)
    seen = machine.check("dd if=/dev/nvme0n1 bs=1M iflag=direct 2>/dev/null | sha256sum", timeout=COMMAND)
    assert seen.split()[0] == hashlib.sha256(image.read_bytes()).hexdigest()
    assert remembered(nvme(machine)) == before
    assert machine.check(f"echo 1 2 >{SUM}; cat {SUM}", timeout=COMMAND) == "3\n"


def test_without_the_choice_the_machine_stays(machine: Machine) -> None:
    with pytest.raises(IolaneError, match=r"can't move: .*QEMU would lose its state.*--replug"):
        machine.migrate("unix:/nowhere.sock")
    assert machine.check("echo here") == "here\n"


def test_with_a_disk_in_use_the_machine_stays(machine: Machine) -> None:
    """The guest's agent knows; nothing was unplugged."""
    machine.check(HERE.format("/dev/nvme0n1"), timeout=COMMAND)
    machine.check("exec 9</dev/nvme0n1; sleep 1000 <&9 >/dev/null 2>&1 & sleep 0.5", timeout=COMMAND)
    with pytest.raises(IolaneError, match=r"unplugging disk is refused: .*nvme0n1 open in sleep"):
        machine.migrate("unix:/nowhere.sock", replug=True)
    machine.check("killall sleep")
    assert machine.check("ls /dev/nvme0n1") == "/dev/nvme0n1\n"


def test_what_left_comes_back_where_the_machine_stays(machine: Machine, image: Path) -> None:
    """Each from its state, in a new server."""
    before = use(machine)
    first = nvme(machine)
    devices = staying(machine)
    devices.check()
    assert [(each.name, each.port) for each in devices.before()] == [("disk", "port1"), ("adder", "port2")]
    assert machine.check("ls /dev/nvme0n1 2>/dev/null || echo gone") == "gone\n"
    assert devices.rollback() == []
    check_back(machine, before, image)
    assert nvme(machine) is not first


def test_a_device_that_leaves_late_leaves_its_state(machine: Machine, folder: Path) -> None:
    """Nobody waits for it any more, and nothing is lost: the event says how it comes back."""
    machine.check(f"echo 40 2 >{SUM}", timeout=COMMAND)
    seen = machine.events()
    machine.pause()
    assert machine.unplug("adder", timeout=0.1) is UnplugOutcome.NO_ANSWER
    machine.resume()
    event = next(each for each in seen if each.kind is EventKind.UNPLUGGED)
    [state] = (folder / "iolane").glob("adder-*.state")
    assert event.text.startswith(f"its state is kept in {state}: iolane plug here '")
    machine.plug(event.text.partition("'")[2].rstrip("'"), port="port2")
    machine.check(HERE.format(SUM), timeout=COMMAND)
    assert machine.check(f"cat {SUM}", timeout=COMMAND) == "42\n"
    state.unlink()


def test_both_move_along(machine: Machine, folder: Path, image: Path) -> None:
    before = use(machine)
    with Destination(folder / "there.sock", "there", [f"adder={ADDER}"]) as destination:
        moved = machine.migrate(destination.uri, replug=True)
        assert moved.phase is SourcePhase.MOVED, (moved, destination.told)
        there = destination.machine()
        check_back(there, before, image)
        assert {each.id: each.port for each in there.guest.plugged} == {"disk": "port1", "adder": "port2"}
        assert list((folder / "iolane").glob("*.state")) == []
