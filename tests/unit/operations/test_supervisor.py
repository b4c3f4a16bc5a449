"""Servers that die or hang are there again, and nothing that they acknowledged is lost."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.carriers.control import is_served, serving
from iolane.carriers.vhost_user import FrontEnd, SharedMemory
from iolane.devices.specification import parse
from iolane.errors import IolaneError
from iolane.operations.restarts import RestartPolicy
from iolane.operations.supervisor import (
    SupervisedServer,
    Supervisor,
    SupervisorEvent,
    SupervisorEventKind,
)
from iolane.testing.drivers.virtio import DriverMemory
from tests.unit.carriers.vhost_user.crash import BLOCK, RING, Disk

QUICK = RestartPolicy(first=0.01, factor=1, most=100)
PATIENCE = 100.0


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Short, because socket paths are."""
    with tempfile.TemporaryDirectory(prefix="iolane-test-") as made:
        monkeypatch.setenv("XDG_RUNTIME_DIR", made)
        yield Path(made)


def server(folder: Path, text: str = "edu", name: str = "edu0", *options: str) -> SupervisedServer:
    return SupervisedServer(parse(text), name, folder / f"{name}.sock", options)


class Diary:
    """What a supervisor told, in order; `wait` for what is to come."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.seen: list[SupervisorEvent] = []
        self._changed = threading.Condition()
        supervisor.on_event.add(self._add)

    def _add(self, event: SupervisorEvent) -> None:
        with self._changed:
            self.seen.append(event)
            self._changed.notify_all()

    def count(self, kind: SupervisorEventKind) -> int:
        return sum(event.kind is kind for event in self.seen)

    def wait(self, kind: SupervisorEventKind, count: int) -> SupervisorEvent:
        """The `count`th of that kind."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.count(kind) >= count, PATIENCE), self.seen
            return [event for event in self.seen if event.kind is kind][count - 1]


def pid_of(supervisor: Supervisor) -> int:
    pid = supervisor.states()[0].pid
    assert pid is not None
    return pid


READY, ENDED, DEAD = SupervisorEventKind.READY, SupervisorEventKind.ENDED, SupervisorEventKind.DEAD


def test_one_that_is_killed_is_there_again(folder: Path) -> None:
    supervisor = Supervisor([server(folder), server(folder, "edu", "edu1")], policy=QUICK)
    diary = Diary(supervisor)
    with supervisor:
        assert diary.count(READY) == 2
        assert b'"carrier":"vfio-user"' in supervisor.ready["edu0"]
        first, second = [state.pid for state in supervisor.states()]
        assert first is not None
        os.kill(first, signal.SIGKILL)
        again = diary.wait(READY, 3)
        assert (again.name, again.pid == first) == ("edu0", False)
        assert "killed by SIGKILL" in diary.wait(ENDED, 1).text
        assert is_served(folder / "edu0.sock")
        mended, other = supervisor.states()
        assert (mended.pid, mended.restarts, mended.dead) == (again.pid, 1, False)
        assert (other.pid, other.restarts) == (second, 0)
        assert supervisor.problem() is None
    assert serving() == []
    assert list((folder / "iolane").iterdir()) == []
    assert not is_served(folder / "edu0.sock")


def test_one_that_hangs_is_replaced(folder: Path) -> None:
    """Stopped, it says nothing: that it is well comes from the process itself, by sd_notify(3)."""
    supervisor = Supervisor([server(folder)], policy=QUICK, watchdog=3)
    diary = Diary(supervisor)
    with supervisor:
        hung = pid_of(supervisor)
        os.kill(hung, signal.SIGSTOP)
        again = diary.wait(READY, 2)
        assert "hangs: no word for 3 s" in diary.wait(ENDED, 1).text
        assert again.pid != hung
        assert is_served(folder / "edu0.sock")


def test_one_that_dies_again_and_again_is_left_alone(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "brief.py"
    file.write_text(
        "import os, pathlib\n"
        "from iolane.devices.edu import Edu\n"
        "class Brief(Edu):\n"
        "    def __init__(self, mark: pathlib.Path):\n"
        "        if mark.exists(): raise ValueError('no second time')\n"
        "        mark.touch()\n"
        "        super().__init__()\n"
    )
    policy = RestartPolicy(first=0.01, factor=1, most=2)
    device = server(folder, f"{file}:Brief,mark={tmp_path}/mark", "brief0")
    supervisor = Supervisor([device], policy=policy)
    diary = Diary(supervisor)
    with supervisor:
        os.kill(pid_of(supervisor), signal.SIGKILL)
        dead = diary.wait(DEAD, 1)
        assert "restarted 2 times within 60 s, not again; " in dead.text
        assert "no second time" in dead.text
        assert os.eventfd_read(supervisor.dead) == 1
        [state] = supervisor.states()
        assert (state.dead, state.pid, state.restarts) == (True, None, 2)
        assert supervisor.problem() == f"brief0: {state.problem}"


def test_a_first_start_that_fails_is_told_and_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    missing = f"block,image={tmp_path}/no.raw"
    with pytest.raises(IolaneError, match="there is no image") as caught:
        Supervisor([server(folder), server(folder, missing, "disk0")]).start()
    assert caught.value.remedy is not None
    assert "truncate" in caught.value.remedy, "the server's own remedy"
    assert serving() == []
    assert list((folder / "iolane").iterdir()) == []


def test_ending_does_not_wait_for_a_restart(folder: Path) -> None:
    supervisor = Supervisor([server(folder)], policy=RestartPolicy(first=3600, longest=3600))
    diary = Diary(supervisor)
    with supervisor:
        os.kill(pid_of(supervisor), signal.SIGKILL)
        diary.wait(SupervisorEventKind.RESTARTING, 1)
        began = time.monotonic()
    assert time.monotonic() - began < 30


@pytest.mark.timeout(300)
def test_no_acknowledged_write_is_lost(folder: Path, tmp_path: Path) -> None:
    """Killed at full depth again and again; the front end reconnects to what the supervisor started."""
    kills, blocks, depth, dice = 4, 256, 32, random.Random(5)
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(blocks * BLOCK))
    disk0 = server(folder, f"block,image={image},queues=2", "disk0")
    supervisor = Supervisor([disk0], policy=QUICK)
    diary = Diary(supervisor)
    with (
        supervisor,
        SharedMemory(8 << 20) as memory,
        FrontEnd(disk0.socket, [memory], rings=2, inflight_size=RING) as front,
    ):
        heap = DriverMemory(memory.view, memory.guest_address)
        halves = (range(blocks // 2), range(blocks // 2, blocks))
        disks = [Disk(front, heap, index, halves[index], index) for index in range(2)]
        for kill in range(kills):
            for _ in range(dice.randrange(4, 24)):
                for disk in disks:
                    disk.collect()
                    disk.fill(depth)
                front.rings[0].wait_call(0.002)
            os.kill(pid_of(supervisor), signal.SIGKILL)
            diary.wait(READY, kill + 2)
            front.reconnect()
        for disk in disks:
            disk.drain()
            disk.check(image)
            assert disk.finished > 100
    assert supervisor.states() == []
