"""The unit in docs/service.md is one that systemd understands, and its ExecStart= does what the unit says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from iolane.carriers.control import is_served
from iolane.operations.service.notify import parse
from tests.unit.cli.support import IOLANE, ROOT

DOCUMENT = (ROOT / "docs/service.md").read_text()
PROGRAM = "/usr/bin/iolane"


def unit() -> str:
    [text] = re.findall(r"```ini\n(.*?)```", DOCUMENT, re.DOTALL)
    assert isinstance(text, str)
    return text


def service() -> dict[str, str]:
    """The [Service] section; its Environment= is given once."""
    parser = ConfigParser(interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit())
    return dict(parser["Service"])


def configuration() -> dict[str, str]:
    """The EnvironmentFile= that the document shows."""
    [text] = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
    return dict(line.split("=", 1) for line in text.splitlines())


def test_systemd_understands_it(tmp_path: Path) -> None:
    verifier = shutil.which("systemd-analyze")
    if verifier is None:
        pytest.skip("NOT VERIFIED: systemd-analyze is not installed here")
    program = tmp_path / "iolane"  # it checks that the program is there
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    file = tmp_path / "iolane-device@.service"
    file.write_text(unit().replace(PROGRAM, str(program)))
    done = subprocess.run([verifier, "verify", str(file)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    file.write_text(unit().replace(PROGRAM, str(program)).replace("WatchdogSec", "WatchdogSeconds"))
    done = subprocess.run([verifier, "verify", str(file)], capture_output=True, text=True, timeout=60)
    assert "Unknown key" in done.stderr, "it says what it does not understand"


def command(variables: dict[str, str], instance: str, folder: Path) -> list[str]:
    """ExecStart= as systemd expands it (systemd.service(5)): `${X}` is one word, `$X` several."""
    words: list[str] = []
    for word in shlex.split(
        service()["ExecStart"].replace("%i", instance).replace("/run/iolane", str(folder))
    ):
        if whole := re.fullmatch(r"\$(\w+)", word):
            words += shlex.split(variables.get(whole[1], ""))
        else:
            words.append(re.sub(r"\$\{(\w+)\}", lambda found: variables.get(found[1], ""), word))
    assert words.pop(0) == PROGRAM
    return [*IOLANE, *words]


def test_its_command_serves_and_tells_the_manager(env: dict[str, str], runtime: Path, tmp_path: Path) -> None:
    image = tmp_path / "web.raw"
    image.write_bytes(bytes(1 << 20))
    variables = configuration()
    variables["DEVICE"] = variables["DEVICE"].replace("/var/lib/iolane/web.raw", str(image))
    assert (service()["Type"], service()["KillMode"]) == ("notify", "mixed")
    assert service()["Environment"] == "XDG_RUNTIME_DIR=/run/iolane"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(60)
        manager.bind(str(runtime / "notify"))
        told = {"NOTIFY_SOCKET": str(runtime / "notify"), "WATCHDOG_USEC": "400000"}
        process = subprocess.Popen(
            command(variables, "web", runtime),
            env={**os.environ, **env, **variables, **told, "XDG_RUNTIME_DIR": str(runtime)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            said: dict[str, str] = {}
            while "READY" not in said:
                said |= parse(manager.recv(4096))
            assert said["MAINPID"] == str(process.pid)
            assert said["STATUS"] == f"web (Block) is served on {runtime}/web.sock"
            assert is_served(runtime / "web.sock")
            for _ in range(3):
                assert parse(manager.recv(4096)) == {"WATCHDOG": "1"}
            process.send_signal(signal.SIGTERM)
            while "STOPPING" not in said:
                said |= parse(manager.recv(4096))
            assert process.wait(60) == 0, "a stop is no failure that Restart= would answer"
        finally:
            process.kill()
            process.communicate()
    assert not is_served(runtime / "web.sock")


def test_its_failure_is_one_that_the_journal_sees(env: dict[str, str], runtime: Path) -> None:
    variables = {"DEVICE": "block,image=/nonexistent/web.raw"}
    reader, writer = os.pipe()
    status = os.fstat(writer)
    done = subprocess.run(
        command(variables, "web", runtime),
        env={**os.environ, **env, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
        stdin=subprocess.DEVNULL,
        stderr=writer,
        timeout=60,
    )
    os.close(writer)
    with open(reader) as lines:
        [line] = lines.read().splitlines()
    assert done.returncode == 1
    assert line.startswith("<3>iolane: block: there is no image /nonexistent/web.raw")
