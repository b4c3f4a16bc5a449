"""`iolane trace` and `--trace`: the accesses of a running device, to another process and to its stderr."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from iolane.carriers.vfio_user import VfioUserClient
from iolane.model.region import RegionIndex
from tests.unit.cli.support import ADDER, IOLANE, iolane, serving

ADDITION = [
    "write bar0.A = 0x00000002",
    "write bar0.B = 0x00000003",
    "write bar0.CONTROL = 0x00000001 START=1",
    "read  bar0.SUM -> 0x00000005",
]


def add(path: Path, reads: int = 1) -> None:
    with VfioUserClient(path) as client:
        client.negotiate()
        for offset, value in ((0, 2), (4, 3), (0x0C, 1)):
            client.write(RegionIndex.BAR0, offset, 4, value)
        for _ in range(reads):
            client.read(RegionIndex.BAR0, 8, 4)


def told(line: str) -> str:
    """A line without time and device."""
    return line[13:].partition(" ")[2].rstrip()


def follow(*arguments: str, env: dict[str, str]) -> subprocess.Popen[str]:
    """`iolane trace`, once it traces."""
    process = subprocess.Popen(
        [*IOLANE, "trace", *arguments],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "Ctrl-C ends it" in process.stderr.readline()
    return process


def level(env: dict[str, str]) -> str:
    found: str = json.loads(iolane("devices", "--json", env=env).stdout)[0]["devices"][0]["trace"]
    return found


def test_a_stream_of_text_ends_with_ctrl_c_and_the_level_goes_back(
    env: dict[str, str], runtime: Path
) -> None:
    with serving(ADDER, "--socket", str(runtime / "s"), env=env):
        process = follow("adder0", env=env)
        assert process.stdout is not None
        assert level(env) == "fields"
        add(runtime / "s")
        assert [told(process.stdout.readline()) for _ in range(4)] == ADDITION
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        while level(env) != "off":  # the server notices the closed connection
            pass


def test_json_filtered(env: dict[str, str], runtime: Path) -> None:
    with serving(ADDER, "--socket", str(runtime / "s"), env=env):
        arguments = ("--level", "registers", "--filter", "bar0.*", "--direction", "read", "--json")
        process = follow("adder0", *arguments, env=env)
        assert process.stdout is not None
        add(runtime / "s", reads=2)
        first = json.loads(process.stdout.readline())
        assert (first["event"], first["register"], first["value"]) == ("read", "bar0.SUM", 5)
        assert json.loads(process.stdout.readline())["register"] == "bar0.SUM"
        process.terminate()
        process.communicate(timeout=20)


def test_a_level_that_stays(env: dict[str, str], runtime: Path) -> None:
    with serving(ADDER, "--socket", str(runtime / "s"), env=env):
        assert iolane("trace", "adder0", "--level", "counters", "--set", env=env).returncode == 0
        add(runtime / "s", reads=300)
        [server] = json.loads(iolane("devices", "--json", env=env).stdout)
        device = server["devices"][0]
        assert device["trace"] == "counters"
        assert device["accesses"] == {
            "bar0.A": [0, 1],
            "bar0.B": [0, 1],
            "bar0.SUM": [300, 0],
            "bar0.CONTROL": [0, 1],
        }
        assert device["spins"][0].startswith("the guest spins on bar0.SUM: 256 reads in ")
        text = iolane("devices", env=env).stdout
        assert "bar0.SUM 300r 0w" in text
        assert "notice: the guest spins on bar0.SUM" in text
        assert iolane("trace", "adder0", "--level", "off", "--set", env=env).returncode == 0
        assert level(env) == "off"


def test_from_the_start_to_stderr(env: dict[str, str], runtime: Path) -> None:
    for wanted, lines in (
        ("fields", ADDITION),
        ("registers,bar0.S*", ADDITION[3:]),
        ("counters,bar0.A", ["adder0 bar0.A: 0 reads, 1 writes"]),
    ):
        process = subprocess.Popen(
            [*IOLANE, "serve", ADDER, "--socket", str(runtime / "s"), "--json", "--trace", wanted],
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        add(runtime / "s")
        process.terminate()
        _, said = process.communicate(timeout=20)
        shown = [line if "reads, " in line else told(line) for line in said.splitlines() if "bar0" in line]
        assert shown == lines
