"""Each wrong command line: one clear line on stderr, a non-zero exit code, nothing left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.support import ADDER, IOLANE, iolane, refused, serving, without_privilege

CONSOLE_ARGUMENTS = ("run", "--device")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("run", "--device", "missing.py:Adder"), "missing.py: no such file"),
        (("run", "--device", "{file}:Addre"), "{file} has no class Addre (did you mean Adder?)"),
        (
            ("run", "--device", "{file}:Field"),
            "{file}: Field is not a device: it does not derive from iolane's",
        ),
        (("run", "--device", "{broken}:X"), "{broken}, line 2: syntax error: '(' was never closed"),
        (("run", "--device", "nvmee"), "no device is called 'nvmee' (did you mean nvme?)"),
        (("run", "--device", "edu,colour=red"), "edu: Edu has no option 'colour' (known: dma_mask"),
        (("run", "--device", "nvme"), "nvme: "),
        (("run", "--device", "nvme,image=/nonexistent/disk.raw"), "nvme: "),
        (("run", "--device", "edu,id=a", "--device", "edu,id=a"), "two devices have the id 'a'"),
        (
            ("run", "--device", "socket=/nonexistent/s"),
            "device 'socket=/nonexistent/s': there is no socket /nonex",
        ),
        (
            ("run", "--device", "{file}:Adder"),
            "an interactive console needs a terminal (give a command for the gu",
        ),
        (
            ("run", "--kernel", "/nonexistent/vmlinuz", "--", "ls"),
            "/nonexistent/vmlinuz: no such kernel (a path, or",
        ),
        (("run", "--initrd", "/nonexistent/initrd"), "/nonexistent/initrd: no such file"),
        (("run", "--module", "/nonexistent/m.c", "--", "ls"), "/nonexistent/m.c: no such file"),
        (
            ("run", "--boot", "disk", "--", "ls"),
            "a command in the guest needs iolane's own initrd, which holds",
        ),
        (
            ("run", "--boot", "disk", "--device", "edu"),
            "there is no device 'disk' to boot from (there are: edu0)",
        ),
        (
            ("run", "--trace", "loud", "--", "ls"),
            "no trace level is called 'loud' (known: counters, fields, off, ",
        ),
        (
            ("lab", "run", "--device", "nvmee", "--", "ls"),
            "device 'nvmee': the lab has no 'nvmee' (did you mean",
        ),
        (("lab", "run", "--device", "none", "--device", "igb", "--", "ls"), "'none' beside other devices"),
        (
            ("lab", "run", "--share", "/nonexistent/s", "--", "ls"),
            "/nonexistent/s is no folder to share (mkdir",
        ),
        (("lab", "run", "--memory", "64M", "--", "ls"), "a lab with 64 MiB would not come up (512M or more)"),
        (
            ("lab", "shell"),
            "an interactive console needs a terminal (give a command for the guest: iolane lab",
        ),
        (("run", "--disk", "", "--", "ls"), "disk '' has no file (FILE[,lane=paravirtual|emulated]"),
        (("run", "--disk", "lane=emulated", "--", "ls"), "disk 'lane=emulated' has no file"),
        (
            ("run", "--disk", "a.raw,lane=passthrough", "--", "ls"),
            "disk 'a.raw,lane=passthrough': an image has no lane 'passthrough' (known: ",
        ),
        (
            ("run", "--disk", "a.raw,lane=paravirtal", "--", "ls"),
            "disk 'a.raw,lane=paravirtal': an image has",
        ),
        (
            ("run", "--disk", "a,lane=emulated,lane=emulated"),
            "disk 'a,lane=emulated,lane=emulated': lane is g",
        ),
        (
            ("run", "--disk", "/nonexistent/a.raw", "--", "ls"),
            "block: there is no image /nonexistent/a.raw (make",
        ),
        (
            ("run", "--disk", "/nonexistent/a.raw,lane=emulated", "--", "ls"),
            "nvme: there is no image /nonexistent/a.raw (make ",
        ),
        (("run", "--disk", "{file_}", "--", "ls"), "block: the image has "),
        (
            ("run", "--disk", "{file_},block_size=7", "--", "ls"),
            "block: blocks have 512, 1024, 2048 or 4096 b",
        ),
        (("run", "--disk", "{file_},colour=red", "--", "ls"), "block: Block has no option 'colour' (known: "),
        (("run", "--net", "tun0", "--", "ls"), "net 'tun0': there is no such network (write tap=NAME, passt"),
        (("run", "--net", "tap=", "--", "ls"), "net 'tap=': which tap device? (write tap=NAME)"),
        (("run", "--net", "none,mtu=9000", "--", "ls"), "net 'none,mtu=9000': no network has no mtu"),
        (("run", "--net", "tap=much-too-long-a-name", "--", "ls"), "net: "),
        (("run", "--net", "tap=t0,mac=01:00:00:00:00:00", "--", "ls"), "net: '01:00:00:00:00:00' is no addr"),
        (
            ("run", "--device", "edu,carrier=vhost-user", "--", "ls"),
            "edu is no virtio device: vhost-user can't carry it (leave carrier=vhost-user out)",
        ),
        (
            ("run", "--device", "edu,carrier=pigeon", "--", "ls"),
            "device 'edu,carrier=pigeon': no carrier is ",
        ),
        (
            ("run", "--device", "socket=/tmp/s,carrier=vhost-user", "--", "ls"),
            "device 'socket=/tmp/s,carrier=vhost-user': QEMU must know what kind of device a vhost-user sock",
        ),
        (
            ("run", "--device", "console,carrier=vhost-user", "--", "ls"),
            "no vhost-user front end of QEMU is used for the console device console0 (carry it by vfio-user",
        ),
        (
            ("serve", "block,image=a.raw,carrier=vfio-user", "--socket", "/tmp/s", "--carrier", "vhost-user"),
            "two carriers: carrier=vfio-user and --carrier vhost-user",
        ),
        (
            ("serve", "block,image=a.raw,presentation=intx", "--socket", "/tmp/s"),
            "block: presentation= is for a PCI function of ours, with vhost-user it is QEMU's (add carrier=v",
        ),
        (
            ("serve", "edu", "--socket", "/nonexistent/s"),
            "socket /nonexistent/s: its folder does not exist (mkdir",
        ),
        (
            ("serve", "edu", "--socket", "{file}"),
            "{file} exists and is no socket (choose another path, or remove",
        ),
        (("serve", "edu", "--socket", "/tmp/" + "x" * 120), "socket path /tmp/xxx"),
        (("trace", "nvme0"), "no running device is called 'nvme0' (nothing is served; see `iolane serve`"),
        (("reset", "nvme0"), "no running device is called 'nvme0' (nothing is served; see `iolane serve`"),
        (
            ("run", "--name", "two words", "--", "ls"),
            "'two words' is no name for a machine (a letter, then letters",
        ),
        *(
            ((verb, "web", *more), "no running machine is called 'web' (none is running; see `iolane run`)")
            for verb, *more in (
                *(["console"], ["pause"], ["resume"], ["stop", "--force"], ["unplug", "disk"]),
                *(["plug", "edu"], ["plug", "--pass", "01:00.0"], ["console", "--show"]),
            )
        ),
        (("plug", "web"), "plug one thing (DEVICE, --disk, --net or --pass)"),
        (("plug", "web", "edu", "--disk", "a.raw"), "plug one thing (DEVICE, --disk, --net or --pass)"),
        (("plug", "web", "--net", "none"), "plug one thing (DEVICE, --disk, --net or --pass)"),
    ],
)
def test_what_can_not_be_done(
    arguments: tuple[str, ...], line: str, env: dict[str, str], tmp_path: Path, runtime: Path
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\nprint(\n")
    names = {"file": ADDER.partition(":")[0], "broken": str(broken)}
    names["file_"] = names["file"].replace(",", ",,")
    done = iolane(*(argument.format(**names) for argument in arguments), env=env, cwd=tmp_path)
    assert refused(done).startswith(line.format(**names))
    assert [entry.name for entry in runtime.rglob("*") if entry.name != "iolane"] == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken.py"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("frob",), "no such command 'frob'"),
        (("--frob",), "no such option: --frob"),
        (("run", "--devise", "edu"), "no such option: --devise"),
        (("run", "--device"), "option '--device' requires an argument"),
        (("run", "--cpus", "0", "--", "ls"), "invalid value for '--cpus'"),
        (("run", "--cpus", "many", "--", "ls"), "invalid value for '--cpus'"),
        (("run", "--memory", "5", "--", "ls"), "invalid value: '5' is not a size from 64M to 1024G"),
        (("run", "--memory", "", "--", "ls"), "invalid value: '' is not a size from 64M to 1024G"),
        (("run", "--accel", "fast", "--", "ls"), "invalid value for '--accel'"),
        (("serve", "edu"), "missing option '--socket'"),
        (("serve", "edu", "--socket", "/tmp/s", "--carrier", "pigeon"), "invalid value for '--carrier'"),
        (("run", "--disk"), "option '--disk' requires an argument"),
        (("run", "--net"), "option '--net' requires an argument"),
        (("serve", "--socket", "/tmp/s"), "missing argument 'DEVICE'"),
        (("serve", "edu", "more", "--socket", "/tmp/s"), "got unexpected extra argument"),
        (("trace", "x", "--level", "loud"), "invalid value for '--level'"),
        (("devices", "--interval", "0"), "invalid value for '--interval'"),
        (("top", "--interval", "0"), "invalid value for '--interval'"),
        (("stop", "web", "--timeout", "-1"), "invalid value for '--timeout'"),
        (("run", "--ports", "25", "--", "ls"), "invalid value for '--ports'"),
        (("unplug", "web"), "missing argument 'DEVICE'"),
    ],
)
def test_what_is_not_understood(arguments: tuple[str, ...], line: str, env: dict[str, str]) -> None:
    said = refused(iolane(*arguments, env=env), code=2)
    assert said.startswith(line)
    assert said.endswith("--help)")


def test_no_verb_shows_the_help(env: dict[str, str]) -> None:
    done = iolane(env=env)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: iolane")


def test_a_socket_in_use(env: dict[str, str], runtime: Path) -> None:
    path = runtime / "s"
    with serving(ADDER, "--socket", str(path), env=env):
        line = refused(iolane("serve", "edu", "--socket", str(path), env=env))
        assert line.startswith(f"socket {path} is in use by another process (choose another path")
        assert path.exists(), "the first one goes on"


def test_a_socket_that_nobody_serves(env: dict[str, str], runtime: Path) -> None:
    path = runtime / "dead"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    line = refused(iolane("run", "--device", f"socket={path}", "--", "ls", env=env))
    assert line.startswith(f"device 'socket={path}': nobody serves {path} (start it: iolane serve DEVICE")


@pytest.mark.parametrize(
    ("qemu", "line"),
    [
        ("/nonexistent/qemu", "/nonexistent/qemu cannot be run"),
        ("/bin/true", "/bin/true is not a QEMU"),
    ],
)
def test_a_qemu_that_is_none(qemu: str, line: str, env: dict[str, str]) -> None:
    done = iolane("run", "--quiet", "--device", ADDER, "--", "ls", env=env | {"IOLANE_QEMU": qemu})
    said = refused(done)
    assert said.startswith(line)
    assert "install qemu-system-x86 >= 10.1, or set IOLANE_QEMU" in said


def test_no_qemu_and_nothing_to_fetch_it_with(env: dict[str, str], tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    without = env | {"PATH": str(tools), "IOLANE_CACHE": str(tmp_path / "cache"), "IOLANE_QEMU": ""}
    said = refused(iolane("run", "--quiet", "--device", ADDER, "--", "ls", env=without))
    assert "apt" in said


def unprivileged(*arguments: str, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*without_privilege(), *IOLANE, *arguments],
        env={**os.environ, **env},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_no_permission_for_a_device_file(env: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "secret.py"
    file.write_text("")
    file.chmod(0)
    done = unprivileged("run", "--device", "secret.py:X", env=env, cwd=tmp_path)
    assert refused(done) == "secret.py: permission denied"


def test_no_permission_for_an_image(env: dict[str, str], tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    image.chmod(0)
    done = unprivileged("run", "--device", "nvme,image=disk.raw", "--", "ls", env=env, cwd=tmp_path)
    said = refused(done)
    assert said.startswith("nvme: ")
    assert "disk.raw" in said
    assert "permission" in said.lower()


def test_no_permission_for_the_socket(env: dict[str, str], tmp_path: Path, runtime: Path) -> None:
    folder = runtime / "closed"
    folder.mkdir(mode=0o500)
    done = unprivileged("serve", "edu", "--socket", str(folder / "s"), env=env, cwd=tmp_path)
    assert refused(done).startswith(f"no permission to make socket {folder}/s")


def test_no_permission_for_the_cache(env: dict[str, str], tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    cache = env | {"IOLANE_CACHE": str(closed / "cache")}
    said = refused(unprivileged("run", "--device", ADDER, "--", "ls", env=cache, cwd=tmp_path))
    assert said.startswith(
        f"the cache folder {closed}/cache cannot be made: Permission denied (set IOLANE_CACHE"
    )


def test_no_permission_for_a_served_socket(env: dict[str, str], tmp_path: Path, runtime: Path) -> None:
    path = runtime / "s"
    with serving(ADDER, "--socket", str(path), env=env):
        path.chmod(0)
        done = unprivileged("run", "--device", f"socket={path}", "--", "ls", env=env, cwd=tmp_path)
    assert refused(done) == f"device 'socket={path}': no permission for {path}"


def test_a_runtime_folder_of_somebody_else(env: dict[str, str], runtime: Path) -> None:
    (runtime / "iolane").mkdir(mode=0o755)
    said = refused(iolane("devices", env=env))
    assert said == (
        f"runtime folder {runtime}/iolane is not a folder of yours alone (mode 0700) "
        "(remove it or set XDG_RUNTIME_DIR)"
    )


def test_debug_shows_where(env: dict[str, str], tmp_path: Path) -> None:
    done = iolane("--debug", "run", "--device", "missing.py:X", env=env, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "iolane: missing.py: no such file"


def test_a_reader_that_stops_early(env: dict[str, str]) -> None:
    script = f"{sys.executable} -m iolane --help | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], env={**os.environ, **env}, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode in (0, 141)
