"""How a command finds itself in the lab."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from iolane.lab.environment import checkout, command_line, environment


def test_only_named_variables_go_in() -> None:
    inside = environment({"HOME": "/home/me", "PATH": "/bin", "SECRET_TOKEN": "x", "IOLANE_CACHE": "/c"})
    assert "SECRET_TOKEN" not in inside
    assert inside["HOME"] == "/home/me"
    assert inside["IOLANE_CACHE"] == "/c"
    assert inside["PATH"].split(":")[:2] == [str(Path(sys.executable).parent), "/bin"]
    assert inside["PYTHONPATH"] == str(checkout())
    assert environment({}, {"MORE": "1"})["MORE"] == "1"


def test_this_checkout_is_found() -> None:
    assert (checkout() / "iolane" / "lab" / "environment.py").is_file()


def test_a_string_is_for_the_shell_and_a_sequence_literal() -> None:
    variables = {"PATH": "/usr/bin:/bin", "A": "it's $HOME"}

    def shown(command: str | list[str]) -> str:
        line = command_line(command, "/", variables)
        return subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout

    assert shown('echo "$A"') == "it's $HOME\n"
    assert shown(["printf", "%s|", "$A", "a b"]) == "$A|a b|"
    assert shown("pwd") == "/\n"
    assert subprocess.run(["sh", "-c", command_line("exit 7", "/nowhere", variables)]).returncode == 7
