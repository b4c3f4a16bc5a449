"""`iolane serve` as a service: in the background, supervised, limited, logged; and `devices --check`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.carriers.control import is_served
from iolane.carriers.vfio_user import VfioUserClient
from iolane.model.region import RegionIndex
from tests.unit.cli.support import ADDER, IOLANE, ROOT, iolane, refused, serving
from tests.unit.cli.test_serving import add


@contextlib.contextmanager
def daemon(*arguments: str, env: dict[str, str], cwd: Path | None = None) -> Iterator[dict[str, object]]:
    """`iolane serve ... --daemon --json`, ended afterwards and waited for; gives its ready lines."""
    done = iolane("serve", *arguments, "--daemon", "--json", env=env, cwd=cwd)
    assert done.returncode == 0, done.stderr
    ready = json.loads(done.stdout)
    pidfd = os.pidfd_open(ready["pid"])
    try:
        yield ready
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        wait_for_end(pidfd)


def wait_for_end(pidfd: int) -> None:
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    try:
        assert poll.poll(30_000), "it does not end"
    finally:
        os.close(pidfd)


def alive(pid: object) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_it_returns_once_clients_can_connect(env: dict[str, str], runtime: Path) -> None:
    path, pid_file = runtime / "s.sock", runtime / "pid"
    with daemon(ADDER, "--socket", str(path), "--pid-file", str(pid_file), env=env) as ready:
        assert add(path, 2, 3) == 5
        assert pid_file.read_text() == f"{ready['pid']}\n"
        [server] = json.loads(iolane("devices", "--json", env=env).stdout)
        assert server["pid"] == ready["pid"]
    assert not path.exists()
    assert not pid_file.exists()
    assert list((runtime / "iolane").iterdir()) == []
    log = (runtime / "s.log").read_text()
    assert f"adder0 is served on {path}" in log
    assert "adder0 is served no more" in log


def test_it_survives_its_client(env: dict[str, str], runtime: Path) -> None:
    """And keeps its state for the next one."""
    path = runtime / "s.sock"
    code = (
        "import sys; from pathlib import Path; from tests.unit.cli.test_serving import add\n"
        "add(Path(sys.argv[1]), 20, 22); import os; os.kill(os.getpid(), 9)"
    )
    with daemon(ADDER, "--socket", str(path), env=env):
        client = subprocess.run([IOLANE[0], "-c", code, str(path)], cwd=ROOT)
        assert client.returncode == -9
        with VfioUserClient(path) as other:
            other.negotiate()
            assert other.read(RegionIndex.BAR0, 8, 4) == 42


def test_the_text_says_how_to_end_it(env: dict[str, str], runtime: Path) -> None:
    done = iolane("serve", "edu", "--socket", str(runtime / "s.sock"), "--daemon", env=env)
    assert done.returncode == 0
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "process"
    assert last[2:] == ["goes", "on;", "SIGTERM", "ends", "it"]
    pidfd = os.pidfd_open(int(last[1]))
    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    wait_for_end(pidfd)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("block,image=no.raw",), "block: there is no image {cwd}/no.raw (make one with: truncate"),
        (("nvme,image=no.raw",), "nvme: "),
        (("block,image=d.raw", "--memory-limit", "1M"), "a memory limit of 1 MiB is too little"),
        (("block,image=d.raw", "--pid-file", "no/pid"), "pid file {cwd}/no/pid: no such file"),
        (("block,image=d.raw", "--log", "no/log"), "log {cwd}/no/log: no such file"),
        (("block,image=d.raw", "--supervise", "--memory-limit", "1M"), "a memory limit of 1 MiB is too "),
        (("block,image=d.raw,socket=x",), "device 'block,image=d.raw,socket=x': image can't be given"),
        (("block,image=d.raw", "--memory-limit", "lots"), "'lots' is not a size"),
    ],
)
def test_a_start_that_fails(
    env: dict[str, str], runtime: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "d.raw").write_bytes(bytes(1 << 20))
    path = runtime / "s.sock"
    done = iolane("serve", *arguments, "--socket", str(path), "--daemon", env=env, cwd=tmp_path)
    assert refused(done).startswith(message.format(cwd=tmp_path))
    assert not path.exists()
    assert not is_served(path)
    left = runtime / "iolane"
    assert not left.exists() or list(left.iterdir()) == []


def test_a_second_one_is_refused(env: dict[str, str], runtime: Path) -> None:
    first, second, pid_file = runtime / "1.sock", runtime / "2.sock", str(runtime / "pid")
    with daemon("edu", "--socket", str(first), "--pid-file", pid_file, env=env) as ready:
        done = iolane("serve", "edu", "--socket", str(second), "--pid-file", pid_file, "--daemon", env=env)
        assert refused(done).startswith(f"pid file {pid_file}: process {ready['pid']} serves already")
        done = iolane("serve", "edu", "--socket", str(first), "--daemon", env=env)
        assert refused(done).startswith(f"socket {first} is in use by another process")
        assert is_served(first)
        assert Path(pid_file).read_text() == f"{ready['pid']}\n"
    with daemon("edu", "--socket", str(second), "--pid-file", pid_file, env=env):
        pass


def test_what_a_killed_one_left_does_not_hinder(env: dict[str, str], runtime: Path) -> None:
    path, pid_file = runtime / "s.sock", str(runtime / "pid")
    with daemon("edu", "--socket", str(path), "--pid-file", pid_file, env=env) as ready:
        pid = int(str(ready["pid"]))
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pidfd)
        assert path.exists()
        with daemon("edu", "--socket", str(path), "--pid-file", pid_file, env=env) as again:
            assert Path(pid_file).read_text() == f"{again['pid']}\n"


def test_limits_and_modes_are_set(env: dict[str, str], runtime: Path, tmp_path: Path) -> None:
    image = tmp_path / "d.raw"
    image.write_bytes(bytes(1 << 20))
    options = ("--memory-limit", "400M", "--socket", str(runtime / "s.sock"))
    with daemon(f"block,image={image},queues=4", *options, env=env) as ready:
        process = Path(f"/proc/{ready['pid']}")
        limits = {line[:25].strip(): line[26:68].split() for line in (process / "limits").open()}
        assert limits["Max open files"] == ["272", "272"]
        assert limits["Max data size"] == [str(400 << 20)] * 2
        assert set(limits["Max core file size"]) <= {"0", "1"}
        status = (process / "status").read_text()
        assert "Umask:\t0077" in status
        assert (process / "cwd").readlink() == Path("/")


def test_json_lines_and_nothing_else(env: dict[str, str], runtime: Path) -> None:
    path, log = runtime / "s.sock", runtime / "log"
    options = ("--log", str(log), "--log-format", "json", "--trace", "registers")
    with daemon(ADDER, "--socket", str(path), *options, env=env):
        assert add(path, 1, 2) == 3
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"ready", "ending"} <= {line.get("event") for line in lines}
    assert any("SUM" in line["message"] and line["logger"] == "iolane.printed" for line in lines)
    done = iolane("serve", "edu", "--socket", "/nonexistent/s", "--log-format", "json", env=env)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert json.loads(line)["message"].startswith("socket /nonexistent/s: its folder does not exist")


def test_supervised_it_is_there_again(env: dict[str, str], runtime: Path) -> None:
    path = runtime / "s.sock"
    with daemon(f"{ADDER},id=sums", "--socket", str(path), "--supervise", env=env) as ready:
        assert add(path, 1, 2) == 3
        [server] = json.loads(iolane("devices", "--json", env=env).stdout)
        child = server["pid"]
        assert child != ready["pid"]
        assert server["devices"][0]["name"] == "sums"
        os.kill(child, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while alive(child) or not is_served(path):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert add(path, 3, 4) == 7
        assert (runtime / "s.log").read_text().count("sums: ready: process") == 2
    assert not is_served(path)


def test_its_supervisor_s_death_is_its_own(env: dict[str, str], runtime: Path) -> None:
    path = runtime / "s.sock"
    with daemon("edu", "--socket", str(path), "--supervise", env=env) as ready:
        [server] = json.loads(iolane("devices", "--json", env=env).stdout)
        child = os.pidfd_open(server["pid"])
        os.kill(int(str(ready["pid"])), signal.SIGKILL)
        wait_for_end(child)
        assert not is_served(path)


def check(asked: object, env: dict[str, str]) -> tuple[int, dict[str, object]]:
    done = iolane("devices", "--check", str(asked), "--json", env=env)
    return done.returncode, json.loads(done.stdout)


def test_scripts_can_ask(env: dict[str, str], runtime: Path) -> None:
    path = runtime / "s.sock"
    assert check("edu0", env)[0] == check(path, env)[0] == 3
    with serving("edu", "--socket", str(path), env=env) as process:
        for asked in ("edu0", f"{process.pid}/edu0", path):
            code, health = check(asked, env)
            assert (code, health["verdict"], health["pid"]) == (0, "well", process.pid)
            assert (health["name"], health["connected"]) == ("edu0", False)
        assert check("edu1", env)[0] == 3
        text = iolane("devices", "--check", "edu0", env=env).stdout
        assert text == f"edu0 is well: process {process.pid} serves {path}, without a client\n"
        os.kill(process.pid, signal.SIGSTOP)
        try:
            code, health = check(path, env)
            assert (code, health["verdict"]) == (1, "ill")
            assert "does not answer" in str(health["reason"])
        finally:
            os.kill(process.pid, signal.SIGCONT)
    assert check("edu0", env)[0] == 3
