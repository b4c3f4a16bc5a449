"""`iolane ps` and `top` where no guest is needed; the rest is in tests/guest/test_machine_session.py."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

from tests.unit.cli.support import ADDER, IOLANE, iolane, said, serving, started
from tests.unit.cli.test_serving import add


def test_no_machine(env: dict[str, str]) -> None:
    assert iolane("ps", env=env).stdout == "no machine is running (see `iolane run`)\n"
    assert json.loads(iolane("ps", "--json", env=env).stdout) == []
    done = iolane("top", "--once", "--interval", "0.1", env=env)
    assert done.stdout == "no device is served now (see `iolane run`)\n"


def test_top_counts_what_is_served_on_its_own(env: dict[str, str], runtime: Path) -> None:
    path = runtime / "s"
    with serving(f"{ADDER},id=sums", "--socket", str(path), env=env):
        add(path, 1, 1)
        done = iolane("top", "--once", "--json", "--interval", "0.1", env=env)
        [row] = json.loads(done.stdout)
        assert (row["machine"], row["device"], row["counters"]["traps"]) == (None, "sums", 4)
        assert row["rates"]["traps"] == 0
        lines = iolane("top", "--once", "--interval", "0.1", env=env).stdout.splitlines()
        assert lines[0].split()[:4] == ["machine", "device", "lane", "carrier"]
        assert lines[1].split()[:6] == ["-", "sums", "-", "-", "4", "0"]


def test_top_streams_a_line_an_interval(env: dict[str, str], runtime: Path) -> None:
    path = runtime / "s"
    with serving(ADDER, "--socket", str(path), env=env):
        with started("top", "--json", "--interval", "0.1", env=env) as top:
            assert json.loads(said(top))[0]["rates"]["traps"] == 0
            add(path, 2, 2)
            deadline = time.monotonic() + 20
            while not json.loads(said(top))[0]["rates"]["traps"]:
                assert time.monotonic() < deadline
            top.send_signal(signal.SIGINT)
            assert top.wait(20) == 130


def test_top_is_live_on_a_terminal(env: dict[str, str], runtime: Path) -> None:
    with serving(f"{ADDER},id=sums", "--socket", str(runtime / "s"), env=env):
        ours, theirs = pty.openpty()
        command = [*IOLANE, "top", "--interval", "0.2"]
        whole = {**os.environ, **env, "TERM": "xterm", "COLUMNS": "140", "LINES": "24"}
        top = subprocess.Popen(
            command, env=whole, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        shown, deadline = b"", time.monotonic() + 40
        try:
            while len(re.findall(rb"sums", shown)) < 2:
                ready, _, _ = select.select([ours], [], [], max(0.0, deadline - time.monotonic()))
                assert ready, shown
                shown += os.read(ours, 4096)
            assert b"traps/s" in shown
            top.send_signal(signal.SIGINT)
            assert top.wait(20) == 130
        finally:
            top.kill()
            top.wait()
            os.close(ours)
