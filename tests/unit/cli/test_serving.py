"""`iolane serve`, `devices` and `reset`: a served device seen and changed from another process."""

from __future__ import annotations

import json
import os
import signal
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from iolane.carriers.vfio_user import VfioUserClient
from iolane.model.region import RegionIndex
from tests.unit.cli.support import ADDER, iolane, refused, said, serving, started

SUM, CONTROL = 0x08, 0x0C


def add(path: Path, a: int, b: int) -> int:
    """One addition by the device served at `path`."""
    with VfioUserClient(path) as client:
        client.negotiate()
        for offset, value in ((0, a), (4, b), (CONTROL, 1)):
            client.write(RegionIndex.BAR0, offset, 4, value)
        return client.read(RegionIndex.BAR0, SUM, 4)


def test_the_ready_lines_name_the_socket(env: dict[str, str], runtime: Path) -> None:
    path = runtime / "adder & co's.sock"
    with started("serve", ADDER, "--socket", str(path), "--json", env=env) as process:
        ready = json.loads(said(process))
        assert (ready["name"], ready["type"], ready["socket"]) == ("adder0", "Adder", str(path))
        assert ready["pid"] == process.pid
        assert ready["qemu"][-2] == "-device"
        assert json.loads(ready["qemu"][-1])["socket"] == {"type": "unix", "path": str(path)}
        elements = ElementTree.fromstring(ready["libvirt"]).iter()
        arguments = [element.get("value") for element in elements if "arg" in element.tag]
        assert arguments == ready["qemu"][-2:]
        assert add(path, 2, 3) == 5
        process.terminate()
        assert process.wait(20) == 0
    assert not path.exists()
    assert list((runtime / "iolane").iterdir()) == []


def test_the_text_says_the_same(env: dict[str, str], runtime: Path) -> None:
    with started("serve", ADDER, "--socket", str(runtime / "s"), env=env) as process:
        text = ""
        while "Ctrl-C ends it" not in text:
            text += said(process)
        assert text.startswith(f"adder0 (Adder) is served by vfio-user on {runtime}/s\n")
        assert '"driver":"vfio-user-pci"' in text
        assert "<qemu:commandline>" in text
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


def test_devices_shows_counters_while_they_run(env: dict[str, str], runtime: Path) -> None:
    path = runtime / "s"
    with serving(f"{ADDER},id=sums", "--socket", str(path), env=env) as process:
        add(path, 1, 1)
        [server] = json.loads(iolane("devices", "--json", env=env).stdout)
        assert server["pid"] == process.pid
        [device] = server["devices"]
        assert device["name"] == "sums"
        assert not device["connected"]
        assert device["counters"]["writes"] == 3
        assert device["counters"]["reads"] == 1
        assert device["counters"]["traps"] == 4
        text = iolane("devices", env=env).stdout
        assert "sums  Adder, waiting for a client, interrupts none, trace off" in text
        assert "traps 4, reads 1, writes 3" in text


def test_devices_names_what_is_not_modelled(env: dict[str, str], runtime: Path) -> None:
    path = runtime / "s"
    with serving(ADDER, "--socket", str(path), env=env):
        with VfioUserClient(path) as client:
            client.negotiate()
            for _ in range(3):
                client.read(RegionIndex.BAR0, 0x40, 4)
        [server] = json.loads(iolane("devices", "--json", env=env).stdout)
        assert server["devices"][0]["unmodelled"] == ["read bar0+0x40 (4 bytes) x 3"]
        assert "not modelled, but touched by the guest: read bar0+0x40" in iolane("devices", env=env).stdout


def test_watch_prints_until_ctrl_c(env: dict[str, str], runtime: Path) -> None:
    with serving(ADDER, "--socket", str(runtime / "s"), env=env):
        with started("devices", "--watch", "--interval", "0.1", "--json", env=env) as watch:
            for _ in range(3):
                assert json.loads(said(watch))[0]["devices"][0]["name"] == "adder0"
            watch.send_signal(signal.SIGINT)
            assert watch.wait(20) == 130


def test_nothing_served(env: dict[str, str]) -> None:
    assert (
        iolane("devices", env=env).stdout == "no device is served now (see `iolane serve` and `iolane run`)\n"
    )
    assert json.loads(iolane("devices", "--json", env=env).stdout) == []


def test_reset_from_another_process(env: dict[str, str], runtime: Path) -> None:
    path = runtime / "s"
    with serving(ADDER, "--socket", str(path), env=env):
        assert add(path, 20, 22) == 42
        done = iolane("reset", "adder0", "--json", env=env)
        assert json.loads(done.stdout) == {"device": "adder0", "reset": "conventional"}
        with VfioUserClient(path) as client:
            client.negotiate()
            assert client.read(RegionIndex.BAR0, SUM, 4) == 0
        assert iolane("reset", "adder0", "--flr", env=env).stdout == "adder0 is reset\n"


def test_two_processes_with_devices_of_one_name(env: dict[str, str], runtime: Path) -> None:
    first, second = runtime / "1", runtime / "2"
    with serving(ADDER, "--socket", str(first), env=env) as one:
        with serving(ADDER, "--socket", str(second), env=env) as two:
            assert add(first, 1, 2) == add(second, 1, 2) == 3
            line = refused(iolane("reset", "adder0", env=env))
            assert line.startswith("several processes serve a device 'adder0' (say which: ")
            assert f"{one.pid}/adder0" in line
            assert iolane("reset", f"{two.pid}/adder0", env=env).returncode == 0
            with VfioUserClient(first) as client:
                client.negotiate()
                assert client.read(RegionIndex.BAR0, SUM, 4) == 3
            with VfioUserClient(second) as client:
                client.negotiate()
                assert client.read(RegionIndex.BAR0, SUM, 4) == 0


def test_a_killed_server_leaves_nothing_that_hinders(env: dict[str, str], runtime: Path) -> None:
    path = runtime / "s"
    with serving(ADDER, "--socket", str(path), env=env) as process:
        process.kill()
        process.wait()
        assert path.exists()
        assert json.loads(iolane("devices", "--json", env=env).stdout) == []
        with serving(ADDER, "--socket", str(path), env=env):
            assert add(path, 3, 4) == 7
    assert not path.exists()
    assert list((runtime / "iolane").iterdir()) == []


def test_a_lifeline_ends_it(env: dict[str, str], runtime: Path) -> None:
    reader, writer = os.pipe()
    arguments = ("serve", ADDER, "--socket", str(runtime / "s"), "--json", "--lifeline", str(reader))
    with started(*arguments, env=env, pass_fds=(reader,)) as process:
        os.close(reader)
        assert said(process)
        assert process.poll() is None
        os.close(writer)
        assert process.wait(20) == 0
    assert not (runtime / "s").exists()


@pytest.mark.parametrize("arguments", [["--available"], ["--available", "--json"]])
def test_available_names_devices_and_options(env: dict[str, str], arguments: list[str]) -> None:
    done = iolane("devices", *arguments, env=env)
    assert done.returncode == 0, done.stderr
    assert "An NVMe 2.0 controller" in done.stdout
    if "--json" in arguments:
        nvme = next(device for device in json.loads(done.stdout) if device["name"] == "nvme")
        assert {"name": "image", "kind": "path", "default": ""} in nvme["options"]
    else:
        assert "options of nvme:\n  image=path\n" in done.stdout


def test_doctor_has_a_verdict_for_everything(env: dict[str, str]) -> None:
    done = iolane("doctor", "--json", env=env)
    findings = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert {"python", "gcc", "apt", "qemu", "kvm", "guest kernels", "cache", "open files"} <= set(findings)
    assert done.returncode == int(any(finding["verdict"] == "missing" for finding in findings.values()))
    assert all(finding["remedy"] for finding in findings.values() if finding["verdict"] == "missing")


def test_doctor_names_what_is_missing(env: dict[str, str], tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    lacking = env | {
        "PATH": str(bare),
        "IOLANE_CACHE": str(tmp_path / "cache"),
        "IOLANE_QEMU": "/nonexistent/qemu",
    }
    done = iolane("doctor", env=lacking)
    assert done.returncode == 1
    assert "no C compiler" in done.stdout
    assert "-> apt install gcc make libc6-dev" in done.stdout
    assert "/nonexistent/qemu cannot be run" in done.stdout


def test_bench_trap_measures_and_writes(env: dict[str, str], tmp_path: Path) -> None:
    document = tmp_path / "numbers.md"
    done = iolane("bench", "trap", "--rounds", "1", "--json", "--quiet", "--write", str(document), env=env)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {case["case"]["kind"] for case in result["cases"]} == {"read", "write", "posted"}
    assert all(case["iolane"]["p50"] > 0 for case in result["cases"])
    assert "| read, hook in Python |" in document.read_text()
