"""`iolane.Machine` as a program has it: names, events, pausing, several at its console, its ends."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane import IolaneError, Machine, MachineDescription
from iolane.carriers.control import EventKind, MachineState, connect_machine, find_machine
from tests.unit.cli.support import errors, iolane, started

pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]


@pytest.fixture(autouse=True, scope="module")
def runtime() -> Iterator[Path]:
    """A runtime folder of the test's own, in which nothing is left behind."""
    folder = Path(f"/tmp/iolane-machines-{os.getpid()}")
    folder.mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield folder
    left = [str(path) for path in folder.rglob("*") if path.name != "iolane"]
    shutil.rmtree(folder)
    assert left == []


@pytest.fixture(scope="module")
def machine(runtime: Path) -> Iterator[Machine]:
    description = MachineDescription(name="web", memory_mib=256, devices=["edu", "rng,id=dice"])
    with Machine(description, shell=True) as started_:
        yield started_


def test_what_it_tells_of_itself(machine: Machine) -> None:
    report = machine.report()
    assert (report.name, report.state, report.pid) == ("web", MachineState.RUNNING, os.getpid())
    assert [(device.id, device.lane, device.port) for device in report.devices] == [
        ("edu0", "emulated", "port1"),
        ("dice", "paravirtual", "port2"),
    ]
    assert report.devices[0].unplug_refused is None
    assert "MSI-X" in (report.devices[1].unplug_refused or "")
    assert report.free_ports == 4
    assert find_machine("web")[1].engine_pid == report.engine_pid
    described = machine.described()
    assert [device.port for device in described.placed] == ["port1", "port2"]
    assert described.port_count == report.ports


def test_no_other_has_its_name(machine: Machine) -> None:
    with pytest.raises(IolaneError, match="a machine called 'web' runs already"):
        Machine(MachineDescription(name="web")).start()
    done = iolane("run", "--name", "web", "--", "true", env={})
    assert done.returncode == 1
    assert "a machine called 'web' runs already" in done.stderr
    assert machine.check("echo here") == "here\n"


def test_paused_is_paused(machine: Machine) -> None:
    """Neither the guest nor its devices go on; the verbs say the same as the machine."""
    with machine.events() as events, connect_machine("web") as client:
        client.pause()
        assert machine.report().state is MachineState.PAUSED
        assert client.show().state is MachineState.PAUSED
        assert all(served.device.paused for served in machine.devices.servers.served)
        with pytest.raises(IolaneError, match=r"web is paused: its guest can't power itself off"):
            client.shut_down()
        client.resume()
        assert machine.report().state is MachineState.RUNNING
        assert not any(served.device.paused for served in machine.devices.servers.served)
        assert machine.check("echo on") == "on\n"
        kinds = [event.kind for event in (events.get(10), events.get(10)) if event is not None]
        assert kinds == [EventKind.PAUSED, EventKind.RESUMED]


def test_its_reset_is_told(machine: Machine) -> None:
    machine.check("touch /tmp/before")
    with machine.events() as events:
        machine.reset()
        event = events.get(10)
        assert event is not None
        assert event.kind is EventKind.RESET
    assert machine.run("test -e /tmp/before").exit_code == 1


def test_a_guest_that_panics(machine: Machine) -> None:
    """The last one: it ends the machine."""
    with machine.events() as events:
        with pytest.raises(IolaneError, match="the machine has ended"):
            machine.run("echo c > /proc/sysrq-trigger")
        seen = list(events)
    assert [event.kind for event in seen] == [EventKind.PANICKED, EventKind.ENDED]
    assert "Kernel panic" in seen[0].text
    assert machine.state is MachineState.ENDED
    assert find_machine("web")[1].state is MachineState.ENDED


@pytest.mark.parametrize("how", [(), ("--force",)])
def test_a_run_that_is_stopped_says_by_whom(how: tuple[str, ...]) -> None:
    """Its command does not end by itself; the guest is asked while it runs."""
    arguments = ("run", "--name", "long", "--memory", "256M", "--", "sleep 1000")
    with started(*arguments, env={}) as process:
        while "up after" not in (line := errors(process)):
            assert line
        done = iolane("stop", "long", *how, env={}, timeout=90)
        assert (done.stdout, done.returncode) == ("long has ended\n", 0), done.stderr
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        assert said.splitlines()[-1] == "iolane: the machine was ended by `iolane stop`"
