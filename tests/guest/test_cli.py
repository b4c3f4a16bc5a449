"""`iolane run` and `iolane demo` as a user meets them: exit codes, JSON, the console, Ctrl-C."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.engines.qemu.initramfs import InitramfsContent, build_initramfs
from iolane.engines.qemu.kernel import debian_kernel
from tests.unit.cli.support import ADDER, IOLANE, errors, serving, started

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A runtime folder and one for temporary files of the test's own: what stays there was left behind."""
    runtime, temporary = Path(f"/tmp/iolane-test-{os.getpid()}"), tmp_path / "tmp"
    runtime.mkdir(mode=0o700, exist_ok=True)
    temporary.mkdir()
    return {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "TMPDIR": str(temporary), "IOLANE_DEBUG": ""}


@pytest.fixture(autouse=True)
def nothing_stays(env: dict[str, str]) -> Iterator[None]:
    """No process, socket or file of a run outlives it."""
    yield
    left = left_behind(env)
    shutil.rmtree(env["XDG_RUNTIME_DIR"])
    assert left == []


def left_behind(env: dict[str, str]) -> list[str]:
    runtime = Path(env["XDG_RUNTIME_DIR"])
    files = [str(path) for path in runtime.rglob("*") if path.name != "iolane"]
    files += [str(path) for path in Path(env["TMPDIR"]).iterdir()]
    marker = f"XDG_RUNTIME_DIR={runtime}\0".encode()
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdecimal() and marker in (process / "environ").read_bytes():
                files.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return files


def run(*arguments: str, env: dict[str, str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*IOLANE, *arguments],
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    """Until its progress says `words`."""
    while words not in (line := errors(process)):
        assert line, f"it ended before it said '{words}'"


def test_output_and_exit_code_pass_through(env: dict[str, str]) -> None:
    done = run(
        "run",
        "--quiet",
        "--device",
        ADDER,
        "--",
        "cat /sys/bus/pci/devices/*/device; echo bad >&2; exit 7",
        env=env,
    )
    assert done.returncode == 7
    assert "0x11ad" in done.stdout.splitlines()
    assert done.stderr.splitlines() == ["bad"]


def test_several_words_are_taken_literally(env: dict[str, str]) -> None:
    done = run("run", "--quiet", "--", "printf", "%s|", "a  b", "$HOME", "it's", "*", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a  b|$HOME|it's|*|"


def test_a_command_that_takes_too_long(env: dict[str, str]) -> None:
    done = run("run", "--quiet", "--timeout", "1.5", "--json", "--", "echo begun; sleep 100", env=env)
    assert done.returncode == 124
    result = json.loads(done.stdout)
    assert result["timed_out"]
    assert result["output"] == "begun\n"


def test_json_holds_the_output_and_what_the_devices_counted(env: dict[str, str], tmp_path: Path) -> None:
    image = tmp_path / "disk,1.raw"
    content = os.urandom(4 << 20)
    image.write_bytes(content)
    escaped = str(image).replace(",", ",,")
    command = "sha256sum < /dev/nvme0n1; printf written > /dev/nvme0n1; sync"
    done = run("run", "--device", f"nvme,image={escaped},id=disk", "--json", "--", command, env=env)
    result = json.loads(done.stdout)
    assert done.returncode == result["exit_code"] == 0
    assert result["output"].split()[0] == hashlib.sha256(content).hexdigest()
    (device,) = result["devices"]
    assert (device["name"], device["type"], device["interrupt_mode"]) == ("disk", "Nvme", "msix")
    assert device["counters"]["traps"] > 100
    assert device["counters"]["dma_bytes_written"] >= len(content)
    assert image.read_bytes() == b"written" + content[7:]
    assert "up after" in done.stderr, "progress goes to stderr"


def test_a_device_in_its_own_process_and_one_served_elsewhere(env: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "edu.sock"
    with serving("edu", "--socket", str(path), env=env) as server:
        devices = ["--device", f"{ADDER},process=own,id=own", "--device", f"socket={path},id=elsewhere"]
        done = run("run", "--quiet", *devices, "--json", "--", "cat /sys/bus/pci/devices/*/device", env=env)
        result = json.loads(done.stdout)
        assert {"0x11ad", "0x11e8"} <= set(result["output"].split())
        assert [device["name"] for device in result["devices"]] == ["own"]
        listed = json.loads(run("devices", "--json", env=env).stdout)
        assert [device["name"] for process in listed for device in process["devices"]] == ["edu0"]
        server.terminate()
        assert server.wait(20) == 0
    assert not path.exists()


@contextlib.contextmanager
def in_terminal(*arguments: str, env: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command with a terminal of its own; ended if it is still there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*IOLANE, *arguments], env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)  # what is read ends when the command does
    try:
        yield process, ours
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)


def read_until(terminal: int, pattern: str, timeout: float = 90.0) -> str:
    shown = b""
    deadline = time.monotonic() + timeout
    while not re.search(pattern.encode(), shown):
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"no {pattern!r} in {shown.decode(errors='replace')}"
        shown += os.read(terminal, 4096)
    return shown.decode(errors="replace")


def test_the_console_is_a_terminal_and_the_escape_key_ends_it(env: dict[str, str]) -> None:
    with in_terminal("run", "--device", ADDER, env=env) as (process, terminal):
        before = termios.tcgetattr(terminal)
        assert "Ctrl-] ends the machine" in read_until(terminal, "Ctrl-] ends")
        read_until(terminal, "# ")
        os.write(terminal, b"echo $((6*7)).\r")
        read_until(terminal, r"\n42\.")
        os.write(terminal, b"sh -c 'echo begin $((1+1)); exec sleep 1000'\r")
        read_until(terminal, r"\nbegin 2")
        os.write(terminal, b"\x03")
        os.write(terminal, b"echo interrupted=$?\r")
        read_until(terminal, "interrupted=130")
        os.write(terminal, b"\x1d")
        read_until(terminal, "ended by the escape key")
        assert termios.tcgetattr(terminal) == before, "the terminal is as it was"
        assert process.wait(30) == 0


def test_the_console_ends_with_the_machine(env: dict[str, str]) -> None:
    with in_terminal("run", env=env) as (process, terminal):
        read_until(terminal, "# ")
        os.write(terminal, b"poweroff -f\r")
        read_until(terminal, "the machine ended by itself")
        assert process.wait(30) == 0


BOOT_SECTOR = bytes.fromhex("31c0 8ed8 be157c ac 84c0 7406 baf803 ee ebf5 f4 ebfd".replace(" ", ""))
"""xor ax,ax; mov ds,ax; mov si,text; the text behind goes to COM1 byte by byte; hlt. Loaded at 0x7c00."""


def test_the_firmware_boots_from_a_device(env: dict[str, str], tmp_path: Path) -> None:
    text = b"hello from the disk\0"
    assert len(BOOT_SECTOR) == 0x15
    image = tmp_path / "disk.raw"
    image.write_bytes((BOOT_SECTOR + text).ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    arguments = ("run", "--device", f"nvme,image={image},id=root", "--boot", "root")
    with in_terminal(*arguments, env=env) as (process, terminal):
        read_until(terminal, "hello from the disk")
        os.write(terminal, b"\x1d")
        assert process.wait(30) == 0


def test_a_kernel_and_an_initrd_of_ones_own(env: dict[str, str], tmp_path: Path) -> None:
    kernel = debian_kernel()
    content = InitramfsContent(setup="echo this is my initrd > /dev/ttyS0")
    own = tmp_path / "initrd"
    own.write_bytes(build_initramfs(kernel, content).read_bytes())
    done = run(
        "run",
        "--quiet",
        "--kernel",
        str(kernel.image),
        "--append",
        "my.word=1",
        "--",
        "cat /proc/cmdline",
        env=env,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" my.word=1\n")
    with in_terminal("run", "--kernel", str(kernel.image), "--initrd", str(own), env=env) as (
        process,
        terminal,
    ):
        read_until(terminal, "this is my initrd")
        os.write(terminal, b"\x1d")
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "booting"),
        (signal.SIGINT, "up after"),
        (signal.SIGTERM, "up after"),
        pytest.param(signal.SIGTERM, "booting", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, "booting", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, "up after", marks=pytest.mark.slow),
    ],
)
def test_signals_end_a_run_and_leave_nothing(
    env: dict[str, str], number: signal.Signals, moment: str
) -> None:
    devices = ["--device", f"{ADDER},process=own", "--device", "edu"]
    with started("run", *devices, "--", "sleep 1000", env=env) as process:
        wait_for(process, moment)
        process.send_signal(number)
        _, last = process.communicate(timeout=30)
        assert process.returncode == 128 + number
        assert "Traceback" not in last


def test_a_killed_run_is_cleaned_up_after_by_the_next(env: dict[str, str]) -> None:
    devices = ["--device", f"{ADDER},process=own", "--device", "edu"]
    with started("run", *devices, "--", "sleep 1000", env=env) as process:
        wait_for(process, "up after")
        process.kill()
        process.wait()
        deadline = time.monotonic() + 20
        while json.loads(run("devices", "--json", env=env).stdout):  # the device's own process ends by itself
            assert time.monotonic() < deadline


def test_a_guest_that_panics_is_explained(env: dict[str, str]) -> None:
    done = run("run", "--quiet", "--", "echo c > /proc/sysrq-trigger", env=env)
    assert done.returncode == 1
    assert done.stderr.startswith("iolane: the machine has ended")
    assert "Kernel panic - not syncing: sysrq triggered crash" in done.stderr


def test_a_killed_device_process_is_told_of_and_the_guest_survives(env: dict[str, str]) -> None:
    arguments = ("run", "--device", f"{ADDER},process=own,id=own", "--", "sleep 6; echo survived")
    with started(*arguments, env=env) as process:
        wait_for(process, "up after")
        [server] = json.loads(run("devices", "--json", env=env).stdout)
        assert [device["name"] for device in server["devices"]] == ["own"]
        os.kill(server["pid"], signal.SIGKILL)
        output, last = process.communicate(timeout=60)
        assert (process.returncode, output) == (0, "survived\n")
        assert "the server of device own" in last
        assert "has gone" in last
        assert "to recover" in last


def test_disks_in_both_lanes(env: dict[str, str], tmp_path: Path) -> None:
    """What the guest writes through one driver is in that disk's image; each lane is counted."""
    images = [tmp_path / name for name in ("a.raw", "b.raw")]
    for image in images:
        image.write_bytes(os.urandom(1 << 20))
    copy = (
        "dd if=/dev/nvme0n1 of=/dev/vda bs=64k oflag=direct conv=fsync && echo $(cat /sys/block/vda/serial)"
    )
    first, second = f"{images[0]},serial=mine,queues=2", f"{images[1]},lane=emulated,read_only=on"
    done = run("run", "--json", "--disk", first, "--disk", second, "--net", "none", "--", copy, env=env)
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(done.stdout)
    assert [line for line in result["output"].splitlines() if "records" not in line] == ["mine"]
    assert images[0].read_bytes() == images[1].read_bytes()
    devices = {device["name"]: device for device in result["devices"]}
    assert devices.keys() == {"block0", "nvme0"}
    block, nvme = devices["block0"], devices["nvme0"]
    assert block["counters"]["traps"] == 0 < block["counters"]["kicks"]
    assert sum(block["statistics"][f"requests{queue}.chains"] for queue in (0, 1)) >= 16
    assert nvme["counters"]["traps"] > 0
    assert [device["counters"]["rejected"] for device in devices.values()] == [0, 0]


def test_the_demo_in_a_fresh_folder(env: dict[str, str], tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    done = run("demo", "--json", env=env, cwd=here)
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(done.stdout)
    assert result["ok"]
    assert all(check["ok"] for check in result["checks"])
    assert [device["driver"] for device in result["devices"]] == ["virtio_blk", "nvme", "serial"]
    assert [device["lane"] for device in result["devices"]] == ["paravirtual", "emulated", "emulated"]
    paravirtual, emulated, _ = (device["each"] for device in result["devices"])
    assert paravirtual["traps"] == 0 < paravirtual["kicks"] <= 1.1
    assert emulated["traps"] >= 1.9
    assert list(here.iterdir()) == []


def test_the_demo_fails_when_something_disagrees(env: dict[str, str], tmp_path: Path) -> None:
    """A disk that changes one bit of what is written to it is caught."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import iolane.backends.file as file\n"
        "honest = file.FileBackend.writev\n"
        "def writev(self, offset, buffers):\n"
        "    data = bytearray(b''.join(buffers))\n"
        "    data[0] ^= 1\n"
        "    honest(self, offset, [memoryview(data)])\n"
        "file.FileBackend.writev = writev\n"
    )
    done = run("demo", "--quiet", "--payload", "8M", env=env | {"PYTHONPATH": str(site)})
    assert done.returncode == 1
    assert "FAIL  nvme: 8 MiB written by the guest, read here" in done.stdout
    assert "SOMETHING DISAGREES" in done.stdout


def test_ctrl_c_in_the_demo(env: dict[str, str]) -> None:
    with started("demo", "--payload", "8M", env=env) as process:
        wait_for(process, "the guest writes")
        process.send_signal(signal.SIGINT)
        _, last = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "Traceback" not in last
