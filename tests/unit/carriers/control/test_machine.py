"""A machine on the control socket: its requests, its streams, its console; hostile and slow peers."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from iolane.carriers.control import (
    ControlServer,
    Done,
    EventKind,
    MachineClient,
    MachineEvent,
    MachineName,
    MachineReport,
    MachineRequest,
    MachineState,
    MachineStream,
    PlugDevice,
    PluggedDevice,
    RemoteConsole,
    StopMachine,
    UnplugDevice,
    Unplugged,
    connect_machine,
    find_machine,
    remove_stale,
    running_machines,
    runtime_directory,
)
from iolane.carriers.control.machine_service import CONSOLE_LIMIT
from iolane.engines.qemu.console import Console
from iolane.errors import IolaneError


class FakeMachine:
    """Remembers what it is asked, and has a console whose other end is ours."""

    def __init__(self, folder: Path) -> None:
        ours, self.guest = socket.socketpair()
        self.real_console = Console(ours, folder / "console.log")
        self.requests: list[MachineRequest] = []
        self.takers: list[Callable[[msgspec.Struct | None], None]] = []
        self.following = threading.Event()
        self.left = threading.Event()

    def report(self) -> MachineReport:
        return MachineReport(
            name="web",
            pid=os.getpid(),
            state=MachineState.RUNNING,
            engine="none",
            memory_mib=64,
            cpus=1,
            started=0.0,
        )

    def console(self) -> Console:
        return self.real_console

    def perform(self, request: MachineRequest) -> msgspec.Struct:
        self.requests.append(request)
        match request:
            case PlugDevice():
                return PluggedDevice(id="a", what=request.device, lane="emulated", carrier="vfio-user")
            case UnplugDevice():
                return Unplugged("no-answer")
            case StopMachine():
                raise IolaneError("the guest does not want to", remedy="--force")
        return self.report() if type(request).__name__ == "ShowMachine" else Done()

    def follow(
        self, request: MachineStream, take: Callable[[msgspec.Struct | None], None]
    ) -> Callable[[], None]:
        self.takers.append(take)
        self.following.set()

        def leave() -> None:
            self.takers.remove(take)
            self.left.set()

        return leave

    def close(self) -> None:
        self.guest.close()
        self.real_console.close()


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return runtime_directory()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[FakeMachine]:
    made = FakeMachine(tmp_path)
    yield made
    made.close()


@pytest.fixture
def client(machine: FakeMachine, runtime: Path, tmp_path: Path) -> Iterator[MachineClient]:
    with ControlServer([], machine=machine) as server:
        assert server.path is not None
        with MachineClient(server.path) as connected:
            yield connected


def test_requests_become_calls(client: MachineClient, machine: FakeMachine) -> None:
    assert client.show().name == "web"
    client.pause()
    client.resume()
    plugged = client.plug("edu", folder=Path("/tmp"), port="port3")
    assert plugged.what == "edu"
    assert client.unplug("a", 0.5) == "no-answer"
    with pytest.raises(IolaneError, match=r"the guest does not want to \(--force\)"):
        client.shut_down(timeout=1)
    asked = [msgspec.to_builtins(request) for request in machine.requests]
    assert [each["do"] for each in asked] == ["machine", "pause", "resume", "plug", "unplug", "stop"]
    assert asked[3] == {"do": "plug", "device": "edu", "passed": "", "folder": "/tmp", "port": "port3"}


def test_a_machine_is_found_by_its_name_or_process(client: MachineClient) -> None:
    assert [report.name for _, _, report in running_machines()] == ["web"]
    assert find_machine("web")[0] == client.path
    assert find_machine(str(os.getpid()))[1].name == "web"
    with pytest.raises(IolaneError, match=r"no running machine is called 'wep' \(running: web\)"):
        connect_machine("wep")


def test_a_process_without_a_machine_says_so(runtime: Path) -> None:
    with ControlServer([]) as server:
        assert server.path is not None
        assert running_machines() == []
        for ask in (MachineClient.show, MachineClient.pause, MachineClient.open_console):
            with MachineClient(server.path) as client, pytest.raises(IolaneError, match="runs no machine"):
                ask(client)
        with pytest.raises(IolaneError, match="none is running; see `iolane run`"):
            find_machine("web")


HOSTILE = [
    {"do": "unplug"},
    {"do": "unplug", "device": "x" * 300},
    {"do": "unplug", "device": "a", "timeout": -1},
    {"do": "unplug", "device": "a", "timeout": 1e9},
    {"do": "stop", "force": "yes"},
    {"do": "stop", "timeout": "soon"},
    {"do": "plug", "device": "d" * 20000},
    {"do": "plug", "device": "edu", "extra": 1},
    {"do": "plug", "device": "edu", "folder": 3},
    {"do": "console", "replay": 7},
    {"do": "machine", "name": "x"},
]


@pytest.mark.parametrize("request_", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_requests_reach_nobody(
    client: MachineClient, machine: FakeMachine, request_: dict[str, object]
) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(client.path))
        with peer.makefile("rb") as replies:
            peer.sendall(json.dumps(request_).encode() + b"\n")
            assert "error" in json.loads(replies.readline())
            peer.sendall(b'{"do": "machine"}\n')
            assert json.loads(replies.readline())["name"] == "web"
    assert [type(each).__name__ for each in machine.requests] == ["ShowMachine"]


def test_events_come_until_the_machine_ends(client: MachineClient, machine: FakeMachine) -> None:
    events = client.machine_events()
    told = [MachineEvent(kind=kind, time=1.0) for kind in (EventKind.PLUGGED, EventKind.ENDED)]

    def tell() -> None:
        assert machine.following.wait(10)
        for event in told:
            machine.takers[0](event)
        machine.takers[0](None)

    teller = threading.Thread(target=tell)
    teller.start()
    assert list(events) == told
    teller.join()
    assert machine.left.wait(10)


def test_whoever_follows_and_goes_is_forgotten(client: MachineClient, machine: FakeMachine) -> None:
    follower = MachineClient(client.path)
    events = follower.machine_events()
    reader = threading.Thread(target=lambda: list(events))
    reader.start()
    assert machine.following.wait(10)
    follower._socket.shutdown(socket.SHUT_RDWR)
    reader.join(10)
    follower.close()
    assert machine.left.wait(10)


class Watcher:
    """Collects what a console shows."""

    def __init__(self, console: RemoteConsole) -> None:
        self.seen = bytearray()
        self.changed = threading.Condition()
        self.ended = threading.Event()
        console.on_end(self.ended.set)
        console.attach(self.take)

    def take(self, data: bytes) -> None:
        with self.changed:
            self.seen += data
            self.changed.notify_all()

    def wait_for(self, text: bytes) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: text in self.seen, 20), self.seen[-200:]


def test_a_console_has_several_watchers_who_all_type(client: MachineClient, machine: FakeMachine) -> None:
    machine.guest.sendall(b"login: ")
    machine.real_console.wait_for("login: ", 10)
    with MachineClient(client.path) as other:
        with client.open_console() as first, other.open_console(replay=False) as second:
            one, two = Watcher(first), Watcher(second)
            one.wait_for(b"login: ")
            machine.guest.sendall(b"hello")
            one.wait_for(b"hello")
            two.wait_for(b"hello")
            assert b"login" not in two.seen
            first.write(b"ab")
            second.write(b"c")
            typed = b""
            while len(typed) < 3:
                typed += machine.guest.recv(10)
            assert sorted(typed) == sorted(b"abc")
            machine.guest.close()
            assert one.ended.wait(10)
            assert two.ended.wait(10)
            first.wait_end()


def test_a_watcher_who_does_not_read_holds_nobody_up(client: MachineClient, machine: FakeMachine) -> None:
    """The guest's output goes on, and the slow one is told how much it has missed."""
    with MachineClient(client.path) as slow, slow.open_console() as lazy:
        with client.open_console() as eager:
            watcher = Watcher(eager)
            deadline = time.monotonic() + 60
            for number in range(3 * CONSOLE_LIMIT // 4096):
                machine.guest.sendall(b"%08d" % number + b"x" * 4088)
                assert time.monotonic() < deadline
            machine.guest.sendall(b"the last")
            watcher.wait_for(b"the last")
        late = Watcher(lazy)
        late.wait_for(b"bytes not shown: too many at once)")


def test_a_guest_that_does_not_read_is_waited_for_by_who_types(
    client: MachineClient, machine: FakeMachine
) -> None:
    """What is typed waits at the one who types: nothing piles up here, and the machine still answers."""
    with MachineClient(client.path) as typist, typist.open_console() as console:
        console._connection.settimeout(2.0)
        with contextlib.suppress(TimeoutError, BlockingIOError):
            for _ in range(2000):
                console._connection.sendall(b"y" * 4096)
            raise AssertionError("somebody has taken 8 MB")
        assert client.show().name == "web"


def test_a_console_that_is_left_stays_for_others(client: MachineClient, machine: FakeMachine) -> None:
    with MachineClient(client.path) as leaving, leaving.open_console() as console:
        Watcher(console)
    with client.open_console() as again:
        watcher = Watcher(again)
        machine.guest.sendall(b"still here")
        watcher.wait_for(b"still here")


def test_a_server_that_stops_lets_its_answer_out(machine: FakeMachine, runtime: Path) -> None:
    """`iolane stop` is answered by a process that is about to end."""
    asked, go_on = threading.Event(), threading.Event()

    def perform(request: MachineRequest) -> msgspec.Struct:
        asked.set()
        assert go_on.wait(10)
        return Done()

    machine.perform = perform  # type: ignore[method-assign]
    server = ControlServer([], machine=machine)
    with MachineClient(server.start()) as client:
        answers: list[str] = []

        def ask() -> None:
            client.shut_down(force=True)
            answers.append("ended")

        asking = threading.Thread(target=ask)
        asking.start()
        assert asked.wait(10)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        go_on.set()
        asking.join(10)
        stopping.join(10)
        assert answers == ["ended"]


def test_a_failing_request_is_no_peer_that_went_away(client: MachineClient, machine: FakeMachine) -> None:
    def perform(request: MachineRequest) -> msgspec.Struct:
        raise ConnectionResetError("QEMU's, not the peer's")

    machine.perform = perform  # type: ignore[method-assign]
    with pytest.raises(IolaneError, match="the request failed: ConnectionResetError: QEMU's"):
        client.pause()
    with pytest.raises(IolaneError, match="the request failed"):
        client.resume()


def test_names_are_unique_while_they_are_held(runtime: Path) -> None:
    with MachineName("web") as web:
        assert web.name == "web"
        with pytest.raises(IolaneError, match=r"a machine called 'web' runs already .*iolane ps"):
            MachineName("web")
        with MachineName(None) as first, MachineName(None) as second:
            assert (first.name, second.name) == ("vm0", "vm1")
        remove_stale()
        assert [path.name for path in runtime.iterdir()] == ["web.machine"]
    with MachineName("web"), MachineName(None) as again:
        assert again.name == "vm0"
    assert list(runtime.iterdir()) == []


def test_the_name_of_a_killed_process_is_free(runtime: Path) -> None:
    (runtime / "web.machine").touch()
    with MachineName("web") as web:
        assert web.name == "web"
    (runtime / "web.machine").touch()
    remove_stale()
    assert list(runtime.iterdir()) == []
