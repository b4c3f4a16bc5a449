"""tools/environment.sh: what ./test and ./demo do and say before Python runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def _bash(code: str, directory: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    script = f"set -euo pipefail; source tools/environment.sh\n{code}"
    environment = {**os.environ, **variables}
    return subprocess.run(
        ["bash", "-c", script],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_an_ordinary_user_is_told_what_to_install() -> None:
    done = _bash(
        "missing_packages() { printf 'gcc\\nmake\\n'; }; id() { echo 1000; }; ensure_packages; echo on"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: missing: gcc make\n       run: sudo apt-get install gcc make\n"


def test_root_has_it_installed() -> None:
    done = _bash(
        "missing_packages() { echo gcc; }; id() { echo 0; }\n"
        'apt-get() { echo "apt-get $*" >&2; }\n'
        "ensure_packages"
    )
    assert done.returncode == 0
    assert done.stderr.splitlines()[0] == "== installing gcc"
    assert done.stderr.splitlines()[-1].endswith("--no-install-recommends gcc")


def test_nothing_is_installed_where_nothing_is_missing() -> None:
    done = _bash("missing_packages() { :; }; apt-get() { echo called; }; ensure_packages")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_a_new_enough_python_it_says_so() -> None:
    done = _bash("find_python() { return 1; }; id() { echo 1000; }; ensure_python")
    assert done.returncode == 1
    assert "no Python 3.11 or newer" in done.stderr
    assert "PYTHON=/path/to/python" in done.stderr


def test_an_old_python_is_passed_over(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = _bash("find_python", PYTHON=str(old))
    assert done.returncode == 0
    assert done.stdout.strip() != str(old)
    assert "python3" in done.stdout


def test_installs_only_after_a_change(tmp_path: Path) -> None:
    for name in ("tools", "src", ".venv/bin"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("tools/environment.sh", "tools/build_backend.py", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / ".venv/bin/python").chmod(0o755)

    def prepare(kind: str, install: str = 'echo "$1"') -> tuple[int, str]:
        done = _bash(f"install() {{ {install}; }}\nprepare_environment {kind}", directory=tmp_path)
        return done.returncode, done.stdout

    assert prepare("run") == (0, "run\n")
    assert prepare("run") == (0, "")
    assert prepare("dev") == (0, "dev\n")
    assert prepare("dev") == prepare("run") == (0, "")  # what serves the tests serves the demo
    helper = tmp_path / "src/_helper.pyx"
    helper.touch()
    assert prepare("dev") == (0, "dev\n")  # new, and not built
    (tmp_path / "src/_helper.cpython-311-x86_64-linux-gnu.so").touch()
    assert prepare("dev") == (0, "")
    helper.write_text("x = 1")
    assert prepare("dev", "false")[0] == 1
    assert prepare("dev") == (0, "dev\n")  # what failed is tried again


def test_the_scripts_can_be_run() -> None:
    for name in ("test", "demo", ".ci/run"):
        assert os.access(ROOT / name, os.X_OK), name
    done = subprocess.run([ROOT / "test", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ./test [--all]")
