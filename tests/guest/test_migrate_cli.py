"""`iolane migrate` and `iolane receive` as an operator uses them: a machine goes from process to process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from iolane.devices.nvme import Nvme
from iolane.operations.machine import Machine, MachineDescription
from iolane.testing.operations_link import CuttableLink
from tests.guest.destination import Destination

pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, because socket paths are."""
    with tempfile.TemporaryDirectory(prefix="iolane-test-") as name:
        yield Path(name)


class Receiving:
    """`iolane receive`. A context manager."""

    def __init__(self, path: Path, name: str, *options: str) -> None:
        self.uri = f"unix:{path}"
        command = [sys.executable, "-m", "iolane", "receive", self.uri, "--name", name, "--json", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.says() == {"waiting": self.uri}

    def says(self) -> dict[str, object]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def ended(self) -> dict[str, object]:
        said = self.says()
        assert self.process.wait(60) == 0
        return said

    def __enter__(self) -> Receiving:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.communicate(timeout=60)


def iolane(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "iolane", *words], capture_output=True, text=True, timeout=120
    )


def state(name: str) -> str:
    shown = json.loads(iolane("ps", "--json").stdout)
    [found] = [each["state"] for each in shown if each["name"] == name]
    return str(found)


def test_from_process_to_process(folder: Path, tmp_path: Path) -> None:
    """Asked first, moved, in doubt and resolved, moved back into this process, where the guest is asked."""
    image = tmp_path / "disk.raw"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    one, two, three = (f"{name}-{folder.name[-6:]}" for name in ("one", "two", "three"))
    with ExitStack() as stack:
        machine = stack.enter_context(
            Machine(MachineDescription(name=one, memory_mib=128, devices=[f"block,image={image},id=disk"]))
        )
        machine.check(
            "echo kept | dd of=/dev/vda bs=512 conv=sync oflag=direct 2>/dev/null; echo kept >/tmp/x"
        )

        # the CLI asks, and moves it
        second = stack.enter_context(Receiving(folder / "2", two))
        asked = iolane("migrate", one, second.uri, "--dry-run")
        assert (asked.returncode, asked.stdout) == (0, f"{one} would be taken\n")
        refused = iolane("migrate", one, f"unix:{folder / 'nobody'}")
        assert refused.returncode == 1
        assert "nobody receives" in refused.stderr
        assert "iolane receive" in refused.stderr
        moved = iolane("migrate", one, second.uri, "--json")
        end = json.loads(moved.stdout.splitlines()[-1])
        assert (moved.returncode, end["outcome"]) == (0, "moved"), moved
        assert 0 < end["downtime"] < end["seconds"]
        assert second.says() == {"arrived": two}
        machine.wait_end(30)
        assert machine.moved_to == second.uri
        machine.stop()
        assert state(two) == "running"

        # the link is cut inside the handshake
        third = stack.enter_context(Receiving(folder / "3", three))
        link = stack.enter_context(CuttableLink(folder / "link", folder / "3"))
        link.stop_at(b'{"say":"commit"')
        doubt = iolane("migrate", two, str(link.place))
        assert doubt.returncode == 3, doubt
        assert f"iolane migrate --resolve {two}" in doubt.stderr
        assert (state(two), state(three)) == ("in-doubt", "in-doubt")
        for name in (two, three):
            assert "is left alone" in iolane("resume", name).stderr
        advice = iolane("migrate", "--resolve", three)
        assert advice.returncode == 1
        assert f"iolane migrate --resolve {three} --here" in advice.stderr
        link.mend()
        resolved = iolane("migrate", "--resolve", two)
        assert resolved.returncode == 0, resolved
        assert resolved.stdout.startswith(f"{two} has moved: ")
        assert second.ended() == {"ended": two, "moved_to": str(link.place)}
        assert third.says() == {"arrived": three}
        assert state(three) == "running"
        assert iolane("migrate", "--cancel", three).returncode == 1
        assert "nothing about machine" in iolane("migrate", "--resolve", three).stderr

        # the guest is none the worse
        assert iolane("stop", three).returncode == 0
        assert third.ended() == {"ended": three, "moved_to": None}
    assert image.read_bytes().startswith(b"kept")


def test_what_does_not_move_goes_along(folder: Path, tmp_path: Path) -> None:
    """An emulated NVMe: out of the guest, through a process of `iolane receive`, and back here with all that
    it remembers.
    """
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(8 << 20))
    one, two, three = (f"{name}-{folder.name[-6:]}" for name in ("out", "there", "back"))
    description = MachineDescription(
        name=one, memory_mib=160, devices=[f"nvme,image={image},presentation=msi,id=disk"]
    )
    with ExitStack() as stack:
        machine = stack.enter_context(Machine(description))
        machine.check(DISK_IS_THERE, timeout=120)
        machine.check(
            "dd if=/dev/urandom of=/dev/nvme0n1 bs=64k count=16 oflag=direct 2>/dev/null", timeout=120
        )
        seen = machine.check(CHECKSUM, timeout=120)
        written = commands_written(machine)
        second = stack.enter_context(Receiving(folder / "2", two))
        refused = iolane("migrate", one, second.uri)
        assert refused.returncode == 1
        assert "--replug" in refused.stderr
        moved = iolane("migrate", one, second.uri, "--replug")
        assert moved.returncode == 0, moved
        assert second.says() == {"arrived": two}
        machine.stop()

        back = stack.enter_context(Destination(folder / "3", three))
        returned = iolane("migrate", two, back.uri, "--replug")
        assert returned.returncode == 0, returned
        assert second.ended() == {"ended": two, "moved_to": back.uri}
        machine = back.machine()
        machine.check(DISK_IS_THERE, timeout=120)
        assert machine.check(CHECKSUM, timeout=120) == seen
        assert commands_written(machine) == written > 0


DISK_IS_THERE = "i=0; until [ -e /dev/nvme0n1 ]; do sleep 0.2; i=$((i+1)); [ $i -lt 500 ] || exit 1; done"
CHECKSUM = "dd if=/dev/nvme0n1 bs=1M iflag=direct 2>/dev/null | sha256sum"


def commands_written(machine: Machine) -> int:
    """What the controller's health log counts (NVM Express 2.0, 5.16.1.3)."""
    served = machine.devices.served("disk")
    assert served is not None
    assert isinstance(served.device, Nvme)
    with served.device.lock:
        return served.device.state.health.writes
