"""The session that docs/machines.md shows, typed in two terminals, and the example beside it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "~ # "
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
NUMBER = re.compile(r"(?<!\S)[0-9][0-9.]*[kMGsmhd]?(?!\S)")
pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]


def blocks() -> Iterator[list[tuple[str, list[str]]]]:
    """Each console block of the document: its commands with what they print."""
    for block in re.findall(r"```console\n(.*?)```", (ROOT / "docs/machines.md").read_text(), re.DOTALL):
        steps: list[tuple[str, list[str]]] = []
        for line in block.splitlines():
            if line.startswith(("$ ", PROMPT)):
                steps.append((line, []))
            else:
                steps[-1][1].append(line)
        yield steps


def plain(lines: list[str]) -> list[str]:
    """Without what may differ: numbers that stand alone, the width of columns, where a file lies."""
    return [NUMBER.sub("N", " ".join(line.split())) for line in lines if line.strip()]


class FirstTerminal:
    """A terminal with `iolane run` in it."""

    def __init__(self, command: str, folder: Path, env: dict[str, str]) -> None:
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command.split(),
            cwd=folder,
            env=env,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def type(self, line: str) -> list[str]:
        """What the guest prints for a line, up to its next prompt."""
        os.write(self.ours, line.encode() + b"\r")
        shown = self.until(rf"{re.escape(line)}\r\n(.*?){PROMPT}")
        return shown.split("\r\n")[:-1]

    def until(self, pattern: str, timeout: float = 150.0) -> str:
        shown, deadline = "", time.monotonic() + timeout
        while not (found := re.search(pattern, shown, re.DOTALL)):
            ready, _, _ = select.select([self.ours], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {pattern!r} in {shown!r}"
            try:
                shown += ESCAPES.sub("", os.read(self.ours, 4096).decode(errors="replace"))
            except OSError:  # the other side is closed
                raise AssertionError(f"it ended without {pattern!r}: {shown!r}") from None
        return found[found.lastindex or 0]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        os.close(self.ours)


def test_the_session_of_the_document(tmp_path: Path) -> None:
    runtime = Path(f"/tmp/iolane-session-{os.getpid()}")
    runtime.mkdir(mode=0o700)
    (tmp_path / "iolane").write_text(f'#!/bin/sh\nexec {sys.executable} -m iolane "$@"\n')
    (tmp_path / "iolane").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "XDG_RUNTIME_DIR": str(runtime), "TERM": "dumb", "COLUMNS": "140"}
    first: FirstTerminal | None = None
    try:
        for steps in blocks():
            for line, said in steps:
                if line.startswith(PROMPT):
                    assert first is not None
                    assert plain(first.type(line.removeprefix(PROMPT))) == plain(said), line
                elif line.startswith("$ iolane run "):
                    first = FirstTerminal(line.removeprefix("$ "), tmp_path, env)
                    first.until(PROMPT)
                else:
                    assert plain(second_terminal(line.removeprefix("$ "), tmp_path, env)) == plain(said), line
        assert first is not None
        first.until("the machine was ended by `iolane stop`")
        assert first.process.wait(60) == 0
    finally:
        if first is not None:
            first.close()
    assert [path for path in runtime.rglob("*") if path.name != "iolane"] == []
    runtime.joinpath("iolane").rmdir()
    runtime.rmdir()


def second_terminal(command: str, folder: Path, env: dict[str, str]) -> list[str]:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.stdout.replace(f"{folder}/", "").splitlines()


def test_the_example(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/hot_plug.py")],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "disk is at port1: it presents MSI in place of MSI-X, so that it can be unplugged again" in lines
    assert [line for line in lines if line.startswith("event: ")] == [
        *("event: plugged disk", "event: unplugged disk", "event: shutdown", "event: ended"),
    ]
    assert lines[-1] == "on the image: written by the guest"
