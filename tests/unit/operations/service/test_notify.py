"""sd_notify(3), both sides; sd_watchdog_enabled(3)."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from iolane.errors import IolaneError
from iolane.operations.service.notify import Notifier, NotifyListener, parse
from iolane.operations.service.watchdog import Watchdog


def manager(address: str | bytes) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(address)
    listening.settimeout(20)
    return listening


def test_a_named_socket_is_told(tmp_path: Path) -> None:
    with manager(str(tmp_path / "n")) as listening, Notifier(str(tmp_path / "n")) as notifier:
        assert notifier.present
        notifier.ready("serves\nREADY=0")
        said = parse(listening.recv(4096))
        assert said == {"READY": "1", "MAINPID": str(os.getpid()), "STATUS": "serves READY=0"}
        notifier.stopping()
        assert parse(listening.recv(4096))["STOPPING"] == "1"


def test_an_abstract_socket_is_told() -> None:
    name = f"iolane-{uuid.uuid4()}"
    with manager(b"\0" + name.encode()) as listening, Notifier(f"@{name}") as notifier:
        notifier.alive()
        assert listening.recv(4096) == b"WATCHDOG=1"


def test_without_a_manager_nothing_happens() -> None:
    notifier = Notifier.from_environment({})
    assert not notifier.present
    assert notifier.watchdog is None
    notifier.ready("x")
    notifier.alive()
    notifier.close()


def test_a_manager_that_went_away_or_does_not_read_hinders_nobody(tmp_path: Path) -> None:
    with Notifier_at(tmp_path) as (listening, notifier):
        for _ in range(10_000):  # its queue is full long before
            notifier.alive()
        listening.close()
        notifier.alive()


class Notifier_at:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "n"

    def __enter__(self) -> tuple[socket.socket, Notifier]:
        self.listening = manager(str(self.path))
        self.notifier = Notifier(str(self.path))
        return self.listening, self.notifier

    def __exit__(self, *_: object) -> None:
        self.notifier.close()
        self.listening.close()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("vsock:2:1234", "neither an absolute path nor @NAME"),
        ("relative", "neither an absolute path nor @NAME"),
        ("/nonexistent/notify", "no such file or directory"),
        ("@" + "x" * 200, "longer than 107 bytes"),
    ],
)
def test_what_is_no_socket_is_refused(address: str, message: str) -> None:
    with pytest.raises(IolaneError, match=message):
        Notifier(address)


@pytest.mark.parametrize(
    ("pid", "inherited", "watchdog"),
    [(None, True, 2.5), ("self", True, 2.5), ("1", True, None), ("1", False, 2.5), ("", True, 2.5)],
)
def test_the_watchdog_is_for_whom_it_names(
    tmp_path: Path, pid: str | None, inherited: bool, watchdog: float | None
) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "2500000", "OTHER": "1"}
    if pid is not None:
        environment["WATCHDOG_PID"] = str(os.getpid()) if pid == "self" else pid
    with manager(str(tmp_path / "n")):
        with Notifier.from_environment(environment, inherited=inherited) as notifier:
            assert notifier.watchdog == watchdog
    assert environment == {"OTHER": "1"}, "children are not meant"


@pytest.mark.parametrize("interval", ["0", "-1", "soon", "9" * 30])
def test_an_interval_that_is_none(tmp_path: Path, interval: str) -> None:
    with pytest.raises(IolaneError, match="no number of microseconds"):
        Notifier.from_environment({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": interval})


def watched(folder: Path, problem: Callable[[float], str | None]) -> tuple[Watchdog, socket.socket, Notifier]:
    listening = manager(str(folder / "n"))
    notifier = Notifier(str(folder / "n"), watchdog=0.04)
    return Watchdog(notifier, problem), listening, notifier


def test_the_manager_hears_again_and_again_until_there_is_a_problem(tmp_path: Path) -> None:
    ill = threading.Event()
    asked: list[float] = []

    def problem(patience: float) -> str | None:
        asked.append(patience)
        return "its server has ended" if ill.is_set() else None

    watchdog, listening, notifier = watched(tmp_path, problem)
    with listening, notifier, watchdog:
        for _ in range(3):
            assert listening.recv(4096) == b"WATCHDOG=1"
        ill.set()
        while (said := listening.recv(4096)) == b"WATCHDOG=1":
            pass
        assert said == b"STATUS=its server has ended"
        seen = len(asked)
        deadline = time.monotonic() + 20
        while len(asked) < seen + 3:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.recv(4096)
        assert asked[0] == 0.01


def test_a_listener_hears_its_own_process_alone(tmp_path: Path) -> None:
    listener = NotifyListener(tmp_path / "n")
    try:
        assert listener.receive(os.getpid()) is None
        with Notifier(str(tmp_path / "n")) as notifier:
            notifier.alive()
            assert listener.receive(os.getpid()) == {"WATCHDOG": "1"}
            notifier.alive()
            assert listener.receive(os.getpid() + 1) == {}
            assert listener.receive(os.getpid()) is None
    finally:
        listener.close()
    assert not (tmp_path / "n").exists()


def test_lines_that_are_no_variables_are_left_out() -> None:
    assert parse(b"READY=1\n\nnonsense\n=x\nA=b=c\n\xff=\xff") == {"READY": "1", "A": "b=c", "�": "�"}
