"""Starting is quick: nothing heavy is imported before a verb runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import iolane
from tests.unit.cli.support import iolane as run_iolane

HEAVY = ("msgspec", "pyroute2", "qemu", "iolane.model", "iolane.devices", "iolane.engines", "iolane.carriers")


def test_version(env: dict[str, str]) -> None:
    done = run_iolane("--version", env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"iolane {iolane.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str], env: dict[str, str]) -> None:
    script = (
        "import sys\n"
        "from iolane.cli.main import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as end: assert not end.code\n"
        f"print([name for name in sys.modules if name.startswith({HEAVY!r})], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **env}, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"
