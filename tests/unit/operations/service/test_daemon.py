"""Detaching: the starter hears how it went, and nothing of it is left in the daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

START = """
import json, os, signal, sys, time
from iolane.errors import IolaneError
from iolane.operations.service.daemon import detach
out = sys.argv[1]
def service(announce):
    {body}
try:
    print(detach(service, keep={keep}, log="the.log").decode())
except IolaneError as error:
    sys.exit(str(error))
"""


def start(
    body: str, out: Path, *, keep: str = "()", pass_fds: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", START.format(body=body, keep=keep), str(out)],
        capture_output=True,
        text=True,
        timeout=60,
        pass_fds=pass_fds,
        start_new_session=True,
    )


LOOK = (
    "seen = dict(pid=os.getpid(), ppid=os.getppid(), sid=os.getsid(0), cwd=os.getcwd(),"
    "fds={n: os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')"
    " if os.path.lexists(f'/proc/self/fd/{n}')});"
    "announce(json.dumps(seen).encode())"
)


def test_nothing_of_the_starter_is_left(tmp_path: Path) -> None:
    """Not its session, folder or descriptors: whoever reads its pipes sees their end."""
    reader, writer = os.pipe()
    try:
        done = start(f"{LOOK}; signal.pause()", tmp_path / "o", pass_fds=(reader, writer))
    finally:
        os.close(reader)
        os.close(writer)
    seen = json.loads(done.stdout)
    try:
        assert done.returncode == 0
        assert seen["cwd"] == "/"
        assert seen["sid"] not in (seen["pid"], os.getsid(0)), "a leader could get a terminal again"
        assert [seen["fds"][number] for number in "012"] == ["/dev/null"] * 3
        others = [target for number, target in seen["fds"].items() if int(number) > 2]
        assert [target.partition(":")[0] for target in others] == ["pipe"], "the one that announces"
    finally:
        os.kill(seen["pid"], signal.SIGKILL)


def test_descriptors_that_are_kept(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        done = start(
            f"{LOOK}; os.write({writer}, b'still here')",
            tmp_path / "o",
            keep=f"({writer},)",
            pass_fds=(reader, writer),
        )
        assert str(writer) in json.loads(done.stdout)["fds"]
        assert os.read(reader, 100) == b"still here"
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise IolaneError('not today', remedy='try tomorrow')", "not today (try tomorrow)"),
        ("open('/nonexistent/x')", "/nonexistent/x: No such file or directory"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("os.kill(os.getpid(), 9)", "the service died while it started, without a word (see the.log)"),
        ("pass", "the service died while it started, without a word (see the.log)"),
    ],
)
def test_a_failure_is_the_starter_s(tmp_path: Path, body: str, message: str) -> None:
    done = start(body, tmp_path / "o")
    assert (done.returncode, done.stdout, done.stderr.strip()) == (1, "", message)


def test_a_hangup_does_not_end_it(tmp_path: Path) -> None:
    body = "announce(b'x'); os.kill(os.getpid(), signal.SIGHUP); open(out, 'w').write('alive')"
    reader, writer = os.pipe()
    done = start(f"{body}; os.write({writer}, b'.')", tmp_path / "o", keep=f"({writer},)", pass_fds=(writer,))
    os.close(writer)
    assert done.stdout == "x\n"
    assert os.read(reader, 1) == b"."
    os.close(reader)
    assert (tmp_path / "o").read_text() == "alive"


def test_a_starter_that_gave_up_has_no_service(tmp_path: Path) -> None:
    """Ctrl-C before it is ready: nobody knows of it, so it ends."""
    begun, begin = os.pipe()
    go, gone = os.pipe()
    told, tell = os.pipe()
    body = (
        f"os.write({begin}, b'.'); os.read({go}, 1)\n"
        f"    try: announce(b'x')\n"
        f"    except BrokenPipeError: os.write({tell}, b'broken')\n"
        f"    else: os.write({tell}, b'announced')"
    )
    code = START.format(body=body, keep=f"({begin}, {go}, {tell})")
    starter = subprocess.Popen([sys.executable, "-c", code, ""], pass_fds=(begin, go, tell), text=True)
    assert os.read(begun, 1) == b"."
    starter.kill()
    starter.wait(20)
    os.write(gone, b".")
    assert os.read(told, 100) == b"broken"
    for descriptor in (begun, begin, go, gone, told, tell):
        os.close(descriptor)
