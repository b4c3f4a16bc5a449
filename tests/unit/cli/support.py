"""Running `iolane` as a user does: a process of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

IOLANE = (sys.executable, "-m", "iolane")
ROOT = Path(__file__).resolve().parents[3]
ADDER = f"{ROOT}/examples/adder.py:Adder"


def iolane(
    *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run it to its end without a terminal."""
    return subprocess.run(
        [*IOLANE, *arguments],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def refused(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The one line it was refused with; nothing on stdout, no traceback."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("iolane: ")
    return lines[0].removeprefix("iolane: ")


def without_privilege() -> Sequence[str]:
    """What to put before a command so that file modes count for it, root or not."""
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    assert setpriv is not None, "util-linux is a requirement of iolane"
    return (setpriv, "--bounding-set=-dac_override,-dac_read_search")


@contextlib.contextmanager
def started(
    *arguments: str, env: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[str]]:
    """`iolane ...` while it runs, its output in pipes; ended by SIGTERM afterwards if it still runs."""
    process = subprocess.Popen(
        [*IOLANE, *arguments],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


@contextlib.contextmanager
def serving(*arguments: str, env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """`iolane serve ... --json` once it is ready."""
    with started("serve", *arguments, "--json", env=env) as process:
        assert said(process).startswith("{"), errors(process)
        yield process


def said(process: subprocess.Popen[str]) -> str:
    """The next line on its stdout."""
    assert process.stdout is not None
    return process.stdout.readline()


def errors(process: subprocess.Popen[str]) -> str:
    """The next line on its stderr."""
    assert process.stderr is not None
    return process.stderr.readline()
