"""The control socket: reports, tracing, reset; hostile peers; the runtime folder."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from iolane.carriers.control import (
    ControlClient,
    ControlServer,
    DeviceReport,
    RunDirectory,
    SetTrace,
    Sink,
    find_device,
    held_functions,
    is_served,
    remove_stale,
    runtime_directory,
    serving,
)
from iolane.carriers.control.messages import LINE_LIMIT
from iolane.carriers.control.server import CONNECTION_LIMIT, EVENT_LIMIT
from iolane.errors import IolaneError
from iolane.host.holding import DmaMapReport, HeldFunction


class Fake:
    """A served device that remembers what it is asked."""

    def __init__(self, name: str = "adder0") -> None:
        self.name = name
        self.level = "off"
        self.resets: list[str] = []
        self.sink: Sink | None = None
        self.following = threading.Event()
        self.restored = threading.Event()

    def report(self) -> DeviceReport:
        return DeviceReport(
            name=self.name,
            type="Adder",
            endpoint="/run/adder.sock",
            connected=True,
            interrupt_mode="MSIX",
            trace=self.level,
            counters={"reads": 3},
            statistics={"temperature": 300.5},
        )

    def set_trace(self, request: SetTrace, sink: Sink | None) -> Callable[[], None]:
        if request.filter == "nonsense":
            raise IolaneError("no register matches 'nonsense'", remedy="bar0.*")
        if request.filter == "defect":
            raise RuntimeError("boom")
        before, self.level, self.sink = self.level, request.level, sink
        self.following.set()

        def restore() -> None:
            self.level, self.sink = before, None
            self.restored.set()

        return restore

    def reset(self, kind: Literal["conventional", "flr"]) -> None:
        self.resets.append(kind)

    def save(self) -> bytes:
        return b"what it was"


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "iolane"


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def server(runtime: Path, fake: Fake) -> Iterator[ControlServer]:
    with ControlServer([fake, Fake("nvme0")], command="iolane serve adder") as running:
        yield running


@pytest.fixture
def path(server: ControlServer) -> Path:
    assert server.path is not None
    return server.path


@contextlib.contextmanager
def raw(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(10)
        peer.connect(str(path))
        yield peer


def test_report_names_process_devices_and_counters(path: Path) -> None:
    with ControlClient(path) as client:
        report = client.report()
    assert report.pid == os.getpid()
    assert report.command == "iolane serve adder"
    assert [device.name for device in report.devices] == ["adder0", "nvme0"]
    assert report.devices[0].counters == {"reads": 3}
    assert report.devices[0].statistics == {"temperature": 300.5}


def test_several_requests_on_one_connection(path: Path, fake: Fake) -> None:
    with ControlClient(path) as client:
        client.set_trace(SetTrace("adder0", "registers"))
        assert client.report().devices[0].trace == "registers"
        client.reset("adder0")
        client.reset("adder0", flr=True)
    assert fake.resets == ["conventional", "flr"]
    assert fake.level == "registers", "without follow the level stays"


def test_a_state_is_saved_into_a_new_private_file(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "saved.state"
    with ControlClient(path) as client:
        client.save("adder0", file)
        assert file.read_bytes() == b"what it was"
        assert file.stat().st_mode & 0o777 == 0o600
        with pytest.raises(IolaneError, match=r"saved\.state: file exists"):
            client.save("adder0", file)


def test_refusals_carry_the_remedy(path: Path) -> None:
    with ControlClient(path) as client:
        with pytest.raises(IolaneError, match=r"no device is called 'x' here \(there are: adder0, nvme0\)"):
            client.reset("x")
        with pytest.raises(IolaneError, match=r"no register matches 'nonsense' \(bar0\.\*\)"):
            client.set_trace(SetTrace("adder0", "fields", filter="nonsense"))
        with pytest.raises(IolaneError, match="the request failed: RuntimeError: boom"):
            client.set_trace(SetTrace("adder0", "fields", filter="defect"))
        assert client.report().devices, "the connection goes on"


def test_follow_streams_and_restores_the_level(path: Path, fake: Fake) -> None:
    with ControlClient(path) as client:
        client.set_trace(SetTrace("adder0", "fields", follow=True))
        assert fake.level == "fields"
        assert fake.sink is not None
        events = client.events()
        fake.sink("bar0.A = 3")
        assert next(events).event == "bar0.A = 3"
        fake.sink({"register": "bar0.A", "value": 4})
        assert next(events).event == {"register": "bar0.A", "value": 4}
    assert fake.restored.wait(10)
    assert fake.level == "off"


def test_a_reader_that_does_not_read_loses_events_but_holds_nobody_up(path: Path, fake: Fake) -> None:
    with ControlClient(path) as client:
        client.set_trace(SetTrace("adder0", "registers", follow=True))
        assert fake.sink is not None
        for number in range(20 * EVENT_LIMIT):  # the device is never held up: this returns
            fake.sink(f"{number:0100d}")
        lost = 0
        for received, event in enumerate(client.events(), 1):
            lost += event.lost
            if received + lost == 20 * EVENT_LIMIT:
                break
        assert lost > 0


def test_followers_end_with_the_server(runtime: Path, fake: Fake) -> None:
    server = ControlServer([fake])
    with ControlClient(server.start()) as client:
        client.set_trace(SetTrace("adder0", "fields", follow=True))
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        assert list(client.events()) == []
        stopper.join(10)
        assert not stopper.is_alive()
    assert fake.restored.is_set()
    assert list(runtime.iterdir()) == []


HOSTILE = [
    b"\n",
    b"{}\n",
    b"null\n",
    b"[]\n",
    b'"devices"\n',
    b'{"do": "dance"}\n',
    b'{"do": 3}\n',
    b'{"do": "reset"}\n',
    b'{"do": "reset", "device": 3}\n',
    b'{"do": "reset", "device": "adder0", "kind": "hard"}\n',
    b'{"do": "trace", "device": "adder0", "level": "hook"}\n',
    b'{"do": "devices", "extra": 1}\n',
    b'{"do": "trace", "device": "adder0", "level": "off", "filter": {"$ne": 1}}\n',
    b"\xff\xfe\x00\n",
    b'{"do": "devices"\n',
    b"[" * 60000 + b"\n",
    b'{"a":' * 10000 + b"\n",
    b'{"do": "reset", "device": "\\ud800"}\n',
    b'{"do": "reset", "device": "' + b"x" * 60000 + b'"}\n',
    b'{"do": "devices", "n": ' + b"9" * 60000 + b"}\n",
]


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_lines_are_refused_and_the_connection_goes_on(path: Path, line: bytes) -> None:
    with raw(path) as peer, peer.makefile("rb") as replies:
        peer.sendall(line)
        assert "error" in json.loads(replies.readline())
        peer.sendall(b'{"do": "devices"}\n')
        assert json.loads(replies.readline())["pid"] == os.getpid()


def test_a_line_that_never_ends_closes_the_connection(path: Path) -> None:
    with raw(path) as peer, peer.makefile("rb") as replies:
        with contextlib.suppress(BrokenPipeError):
            peer.sendall(b"x" * (2 * LINE_LIMIT))
        with contextlib.suppress(ConnectionResetError):
            assert "at most" in json.loads(replies.readline())["error"]
            assert replies.readline() == b""
    with ControlClient(path) as client:
        assert client.report().devices


def test_mutated_requests_never_kill_the_server(server: ControlServer, path: Path) -> None:
    dice = random.Random(20)
    good = [b'{"do":"devices"}', b'{"do":"trace","device":"adder0","level":"fields","filter":"bar0.*"}']
    for _ in range(60):
        with raw(path) as peer, contextlib.suppress(OSError):
            for _ in range(50):
                line = bytearray(dice.choice(good))
                for _ in range(dice.randrange(4)):
                    line[dice.randrange(len(line))] = dice.randrange(256)
                peer.sendall(line + b"\n")
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(65536):
                pass
    assert server.rejected > 500
    with ControlClient(path) as client:
        assert client.report().devices


def test_too_many_connections_are_closed_and_the_others_live(server: ControlServer, path: Path) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(ControlClient(path))
        assert first.report().devices
        for _ in range(CONNECTION_LIMIT - 1):
            assert stack.enter_context(ControlClient(path)).report().devices
        with pytest.raises(IolaneError, match="went away"):
            stack.enter_context(ControlClient(path)).report()
        assert first.report().devices
    assert server.rejected == 1


def test_serving_removes_what_a_killed_process_left(path: Path, runtime: Path) -> None:
    dead = runtime / "1-dead.control"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    assert dead.exists()
    assert [found for found, _ in serving()] == [path]
    assert not dead.exists()


def test_find_device_by_name_and_process(path: Path) -> None:
    assert find_device("nvme0")[0] == path
    assert find_device(f"{os.getpid()}/nvme0")[1].name == "nvme0"
    with pytest.raises(IolaneError, match=r"no running device is called 'x' \(running: adder0, nvme0\)"):
        find_device("x")
    with ControlServer([Fake("nvme0")]), pytest.raises(IolaneError, match="several processes serve a device"):
        find_device("nvme0")


def test_held_functions_are_told_while_they_are_held(server: ControlServer) -> None:
    class Holder:
        def held(self) -> HeldFunction:
            maps = [DmaMapReport(0, 0x1000, "rw", "guest memory")]
            return HeldFunction(function="0000:01:00.0", machine="vm0", pid=os.getpid(), maps=maps)

    holder = Holder()
    assert held_functions() == []
    server.add_holder(holder)
    assert held_functions() == [holder.held()]
    server.remove_holder(holder)
    server.remove_holder(holder)
    assert held_functions() == []


def test_find_device_when_nothing_runs(runtime: Path) -> None:
    with pytest.raises(IolaneError, match="nothing is served"):
        find_device("nvme0")


def test_the_runtime_folder_is_private(runtime: Path) -> None:
    assert runtime_directory() == runtime
    assert runtime.stat().st_mode & 0o777 == 0o700
    runtime.chmod(0o755)
    with pytest.raises(IolaneError, match="not a folder of yours alone"):
        runtime_directory()


def test_a_planted_runtime_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "iolane").symlink_to("elsewhere")
    with pytest.raises(IolaneError, match="not a folder of yours alone"):
        runtime_directory()


def test_run_directories_of_the_dead_go_and_of_the_living_stay(runtime: Path) -> None:
    with RunDirectory() as run:
        dead = runtime / "run-dead"
        dead.mkdir()
        (dead / "lock").touch()
        (dead / "nvme0.sock").touch()
        remove_stale()
        assert not dead.exists()
        assert run.path.is_dir()
    assert not run.path.exists()


def test_is_served(tmp_path: Path) -> None:
    socket_path = tmp_path / "s"
    assert not is_served(socket_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        assert not is_served(socket_path)
        listener.listen(1)
        assert is_served(socket_path)
    assert not is_served(socket_path)
