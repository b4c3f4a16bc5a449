"""One machine on the engine qemu, booted once, and what its owner can do with it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iolane.engines.qemu.agent import CommandFailedError, Type
from iolane.engines.qemu.command_line import Accelerator, VfioUserDevice
from iolane.engines.qemu.initramfs import FSCK_EXT4, MKFS_EXT4, NVME, InitramfsContent
from iolane.engines.qemu.kernel import build_module, debian_kernel
from iolane.engines.qemu.machine import MachineConfig, MachineError, QemuMachine
from iolane.engines.qemu.slots import DeadServer
from iolane.errors import IolaneError

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

MODULE = """
#include <linux/module.h>
static int __init start(void) { pr_info("iolane-test-module is here\\n"); return 0; }
static void __exit stop(void) { }
module_init(start);
module_exit(stop);
MODULE_LICENSE("GPL");
"""

SERVER = """
import sys
from iolane.carriers.vfio_user.server import VfioUserServer
from iolane.devices.edu import Edu
from iolane.model.pci import Msix
from iolane.model.workers import Workers
class WithMsix(Edu):
    msix = Msix(vectors=1)
device = {"edu": Edu, "msix": WithMsix}[sys.argv[1]]()
with Workers() as workers, VfioUserServer(device, sys.argv[2], workers=workers):
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QemuMachine]:
    source = tmp_path_factory.mktemp("module") / "iolane_test.c"
    source.write_text(MODULE)
    content = InitramfsContent(
        modules=["virtio_net"],
        extra_modules=[build_module(debian_kernel(), source)],
        programs=[NVME, MKFS_EXT4, FSCK_EXT4],
        files={"/etc/greeting": b"hello from the host\n", "/usr/bin/tool": Path("/bin/true")},
        setup="echo set up > /tmp/setup",
    )
    config = MachineConfig(name="test", cpus=2, content=content, shell=True, accelerator=Accelerator.TCG)
    with QemuMachine(config) as started:
        yield started


@contextmanager
def served(kind: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", SERVER, kind, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process
        finally:
            process.kill()


def test_it_is_an_unmodified_debian_kernel(machine: QemuMachine) -> None:
    assert machine.check("uname -r").strip() == debian_kernel().release
    assert machine.check("nproc").strip() == "2"
    assert machine.boot_seconds < 60


def test_exit_codes(machine: QemuMachine) -> None:
    for code in (0, 1, 7, 255):
        assert machine.run(f"exit {code}").exit_code == code
    assert machine.run("kill -9 $$").exit_code == 128 + signal.SIGKILL
    assert machine.run("no-such-program").exit_code == 127
    with pytest.raises(CommandFailedError, match=r"exit code 3.*why"):
        machine.check("echo why >&2; exit 3")


def test_output_is_binary_safe_and_separate(machine: QemuMachine) -> None:
    result = machine.run(r"printf '\000\377\n\r\251'; printf 'oops\n' >&2")
    assert (result.stdout, result.stderr) == (b"\0\xff\n\r\xa9", b"oops\n")
    merged = machine.run("echo a; echo b >&2; echo c", merge=True)
    assert (merged.stdout, merged.stderr) == (b"a\nb\nc\n", b"")
    assert machine.run(["printf", "%s|", "a b", "$HOME", "'"]).stdout == b"a b|$HOME|'|"


def test_much_output(machine: QemuMachine) -> None:
    pieces: list[bytes] = []

    def listen(kind: Type, data: bytes) -> None:
        assert kind is Type.STDOUT
        pieces.append(data)

    result = machine.run("seq 1 30000", on_output=listen)
    assert result.stdout.decode().split() == [str(i) for i in range(1, 30001)]
    assert b"".join(pieces) == result.stdout
    assert len(pieces) > 1


def test_standard_input(machine: QemuMachine) -> None:
    data = os.urandom(50_000)
    assert machine.run("cat", stdin=data).stdout == data
    assert machine.run("cat").stdout == b""
    assert machine.run("head -c 3; exit 4", stdin=data).exit_code == 4  # leaves most of it unread
    assert machine.run("exec <&-; sleep 0.1", stdin=data).exit_code == 0
    assert machine.run("echo fine").stdout == b"fine\n"


def test_time_limits(machine: QemuMachine) -> None:
    started = time.monotonic()
    result = machine.run("echo started; sleep 1000 | sleep 1000", timeout=3)
    assert result.timed_out
    assert result.stdout == b"started\n"
    assert time.monotonic() - started < 100
    assert machine.run("pidof sleep").exit_code == 1  # its children were killed too
    with pytest.raises(CommandFailedError, match="did not end in time"):
        result.check()


def test_a_background_child_does_not_hold_the_command(machine: QemuMachine) -> None:
    result = machine.run("(while :; do echo more; done) & echo over")
    assert result.exit_code == 0
    assert b"over\n" in result.stdout
    machine.run("killall sh")
    assert machine.run("echo fine").stdout == b"fine\n"


def test_a_caller_that_is_interrupted(machine: QemuMachine) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(kind: Type, data: bytes) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        machine.run("while :; do echo more and more; done", stdin=b"x" * 50_000, on_output=interrupt)
    assert machine.run("echo fine").stdout == b"fine\n"


def test_files_there_and_back(machine: QemuMachine) -> None:
    for data in (b"", b"\0\xff\r\n\x04", os.urandom(70_001)):
        machine.push("/tmp/new/folder/file", data, mode=0o750)
        assert machine.pull("/tmp/new/folder/file") == data
    assert machine.check("stat -c %a /tmp/new/folder/file").strip() == "750"
    with pytest.raises(IolaneError, match="No such file"):
        machine.pull("/tmp/missing")
    with pytest.raises(IolaneError, match="Is a directory"):
        machine.push("/tmp", b"x" * 20_000)
    with pytest.raises(IolaneError, match="No space left"):
        machine.push("/dev/full", b"x" * 20_000)
    assert machine.run("echo fine").stdout == b"fine\n"


def test_what_the_initramfs_brought(machine: QemuMachine) -> None:
    assert machine.check("cat /etc/greeting") == "hello from the host\n"
    assert machine.check("cat /tmp/setup") == "set up\n"
    assert machine.run("test -x /usr/bin/tool").exit_code == 0
    loaded = machine.check("lsmod")
    assert "virtio_net" in loaded
    assert "net_failover" in loaded  # needed by virtio_net
    assert "iolane_test" in loaded
    assert "iolane-test-module is here" in machine.check("dmesg")


def test_programs_of_debian_packages(machine: QemuMachine) -> None:
    assert "nvme version" in machine.check("nvme version")
    machine.check("truncate -s 8M /tmp/fs && mkfs.ext4 -q /tmp/fs && fsck.ext4 -f -n /tmp/fs", timeout=120)


def test_the_console_is_free_for_its_user(machine: QemuMachine) -> None:
    machine.console.write(b"echo at the $((40 + 2)) console\n")
    machine.console.wait_for(r"at the 42 console", 30)
    assert "at the 42 console" in machine.console.log.read_text(errors="replace")
    machine.check("echo a kernel message > /dev/kmsg; echo to the console > /dev/console")
    machine.console.wait_for("to the console", 30)


def test_plug_unplug_and_a_server_that_dies(machine: QemuMachine, tmp_path: Path) -> None:
    dead: list[DeadServer] = []
    told = threading.Event()

    def tell(server: DeadServer) -> None:
        dead.append(server)
        told.set()

    machine.on_dead_server = tell
    device = VfioUserDevice("edu", tmp_path / "edu.sock")
    with served("edu", device.socket) as server:
        machine.plug(device)
        _in_guest(machine, "0x11e8", present=True)
        machine.unplug("edu").require("edu")
        _in_guest(machine, "0x11e8", present=False)
        machine.plug(device)
        assert machine.dead_servers() == []
        server.kill()
        assert told.wait(20)
        assert [each.device.id for each in dead] == ["edu"]
        assert "unplug edu, start its server again, plug edu" in str(dead[0])
        assert machine.run("true").exit_code == 0  # the guest goes on
        with pytest.raises(IolaneError, match=r"resetting is refused.*unplug edu"):
            machine.reset()
    machine.unplug("edu").require("edu")
    with served("edu", device.socket):
        machine.plug(device)
        _in_guest(machine, "0x11e8", present=True)
        with pytest.raises(IolaneError, match="silently drop the state of edu"):
            machine.migrate_to(QemuMachine(MachineConfig(incoming=True)))
        machine.unplug("edu").require("edu")


def test_an_unplug_that_would_abort_qemu_is_refused(machine: QemuMachine, tmp_path: Path) -> None:
    device = VfioUserDevice("wide", tmp_path / "wide.sock")
    with served("msix", device.socket):
        machine.plug(device)
        with pytest.raises(IolaneError, match=r"MSI-X.*presentation=msi"):
            machine.unplug("wide").require("wide")
        _in_guest(machine, "0x11e8", present=True)
        assert machine.running
    _eventually(lambda: bool(machine.dead_servers()))
    assert "stop the machine" in machine.dead_servers()[0].recovery
    machine.stop()
    machine.start()


def _in_guest(machine: QemuMachine, device_id: str, *, present: bool) -> None:
    """The guest finds out by itself, soon."""
    look = "cat /sys/bus/pci/devices/*/device"
    _eventually(lambda: (device_id in machine.check(look)) is present)


def _eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline


def test_reset_and_power_off(machine: QemuMachine) -> None:
    """The last one: it ends the machine."""
    machine.check("touch /tmp/before")
    machine.reset()
    assert machine.run("test -e /tmp/before").exit_code == 1
    machine.powerdown()
    assert not machine.running
    with pytest.raises(IolaneError, match="not running"):
        machine.run("true")
    machine.stop()


def test_a_kernel_that_does_not_come_up() -> None:
    """No init: the kernel panics. The error says where the console is and how it ended."""
    config = MachineConfig(append="rdinit=/nowhere root=/dev/none", accelerator=Accelerator.TCG, ports=0)
    with pytest.raises(MachineError, match="ended while it booted") as caught:
        QemuMachine(config).start()
    assert "panic" in caught.value.console
    assert "panic" in str(caught.value)
    assert ".log" in str(caught.value)


def test_qemu_that_does_not_start() -> None:
    config = MachineConfig(extra_arguments=["-device", "no-such-device"], accelerator=Accelerator.TCG)
    with pytest.raises(MachineError, match=r"did not start.*status 1.*no-such-device"):
        QemuMachine(config).start()


OWNER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background commands ignore it
from iolane.engines.qemu.command_line import Accelerator
from iolane.engines.qemu.machine import MachineConfig, QemuMachine
with QemuMachine(MachineConfig(accelerator=Accelerator.TCG, ports=0, paused=True)) as machine:
    print(machine.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_its_owner(end: signal.Signals, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as owner:
        assert owner.stdout is not None
        qemu = os.pidfd_open(int(owner.stdout.readline()))
        try:
            owner.send_signal(end)
            assert owner.wait(30) != 0
            assert select.select([qemu], [], [], 20)[0]  # readable: the process has ended
        finally:
            owner.kill()
            os.close(qemu)
    assert list(tmp_path.iterdir()) == []
