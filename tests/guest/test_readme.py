"""The commands that README shows do what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]


def shown() -> list[tuple[str, str]]:
    """Each command of the usage section with the last line that it is said to print."""
    section = (ROOT / "README.md").read_text().partition("## Using it")[2]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    lines = block[1].replace("\\\n", " ").splitlines()
    return [(command.strip(), said.strip()) for command, _, said in (line.partition("  #") for line in lines)]


def test_the_guests_of_the_readme(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "iolane").write_text(f'#!/bin/sh\nexec {sys.executable} -m iolane "$@"\n')
    (tmp_path / "iolane").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    guests = 0
    for command, said in shown():
        if " -- " not in command and command.startswith("iolane"):
            continue  # waits for its user; tests/guest/test_cli.py and tests/unit/cli do
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        if command.startswith("iolane"):
            guests += 1
            expected = said.removeprefix("...").split()
            assert done.stdout.split()[-len(expected) :] == expected, command
    assert guests == 3
