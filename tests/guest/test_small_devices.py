"""adder, edu and the serial port in a stock Debian guest: one boot, then every check against it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from examples.adder import Adder
from iolane import IolaneError
from iolane.carriers.vfio_user import VfioUserServer
from iolane.devices.edu import Edu
from iolane.devices.serial import PciSerial
from iolane.engines.qemu.command_line import VfioUserDevice
from iolane.engines.qemu.initramfs import InitramfsContent
from iolane.engines.qemu.kernel import Flavour, build_module, debian_kernel
from iolane.engines.qemu.machine import MachineConfig, QemuMachine
from iolane.engines.qemu.slots import DeadServer
from iolane.model.interrupts import InterruptMode
from iolane.model.pci import PciDevice
from iolane.model.workers import Workers
from iolane.operations.serving import DeviceServers

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).parents[2] / "examples"
VICTIM = f"{EXAMPLES / 'adder.py'}:Adder,presentation=msi,process=own,id=victim"
SECONDS = 100.0
DRIVERS = "/sys/bus/pci/drivers"
TTY = "/dev/ttyS2"
"""Behind the console and the agent's port."""
PORT_LINE = "grep '^2:' /proc/tty/driver/serial"


@dataclass
class Guest:
    """The machine, and this process's side of what is plugged into it."""

    machine: QemuMachine
    folder: Path
    workers: Workers
    servers: dict[str, VfioUserServer] = field(default_factory=dict)
    victims: DeviceServers | None = None
    dead: list[DeadServer] = field(default_factory=list)
    death_told: threading.Event = field(default_factory=threading.Event)

    def serve(self, name: str, device: PciDevice) -> VfioUserDevice:
        """Serve a device in this process."""
        server = VfioUserServer(device, self.folder / f"{name}.sock", workers=self.workers)
        server.start()
        self.servers[name] = server
        return VfioUserDevice(name, server.path)

    def end(self, name: str) -> None:
        """Stop serving it."""
        server = self.servers.pop(name)
        server.stop()
        server.device.close()

    def serve_victim(self) -> VfioUserDevice:
        """Serve an adder in a process of its own."""
        assert self.victims is None
        self.victims = DeviceServers([VICTIM])
        self.victims.__enter__()
        return VfioUserDevice("victim", self.victims.endpoints[0].socket)

    def end_victim(self) -> None:
        """End its process, or what is left of it."""
        victims, self.victims = self.victims, None
        if victims is not None:
            victims.__exit__(None, None, None)

    def end_all(self) -> None:
        """Stop serving everything."""
        for name in list(self.servers):
            self.end(name)
        self.end_victim()

    def told_of_death(self, dead: DeadServer) -> None:
        self.dead.append(dead)
        self.death_told.set()

    def adder(self, port: int) -> str:
        """The sysfs folder of the adder behind a root port: the bus number is the port's."""
        return f"{DRIVERS}/adder/0000:{port:02x}:00.0"


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    folder = tmp_path_factory.mktemp("sockets")
    kernel = debian_kernel(Flavour.CLOUD)
    modules = [build_module(kernel, EXAMPLES / name) for name in ("adder_driver", "edu_driver")]
    with contextlib.ExitStack() as stack:
        machine = QemuMachine()
        guest = Guest(machine, folder, stack.enter_context(Workers(2)))
        stack.callback(guest.end_all)
        devices = [
            guest.serve("adder", Adder()),
            guest.serve("edu", Edu()),
            guest.serve("serial", PciSerial(f"listen:{folder / 'line'}")),
            guest.serve_victim(),
        ]
        machine.config = MachineConfig(
            name="small-devices",
            kernel=kernel,
            devices=devices,
            content=InitramfsContent(extra_modules=modules),
        )
        machine.on_dead_server = guest.told_of_death
        stack.enter_context(machine)
        yield guest


# The adder and edu under their own drivers.


def test_adder_adds_and_interrupts(guest: Guest) -> None:
    folder = guest.adder(1)
    before = int(guest.machine.check(f"cat {folder}/interrupts"))
    output = guest.machine.check(f"cd {folder}; for i in 1 2 3; do echo 4294967290 $i > sum; cat sum; done")
    assert output.split() == ["4294967291", "4294967292", "4294967293"]
    assert int(guest.machine.check(f"cat {folder}/interrupts")) == before + 3
    assert guest.servers["adder"].device.interrupts.mode is InterruptMode.MSIX


@pytest.mark.parametrize("mode", ["msi", "intx"])
def test_edu_does_all_of_its_specification(guest: Guest, mode: str) -> None:
    machine = guest.machine
    machine.check(f"rmmod edu; insmod /lib/modules/edu.ko intx={int(mode == 'intx')}")
    output = machine.check(
        f"cd {DRIVERS}/edu/0000*; cat identification; echo 0x12345678 > liveness; cat liveness;"
        "for n in 0 6 12 20; do echo $n > factorial; cat factorial; done;"
        "for cause in 1 0x42 0x80000000; do echo $cause > interrupt; done;"
        "for size in 1 100 4095 4096; do echo $size > transfer; cat transfer; done; cat interrupts"
    )
    lines = output.splitlines()
    assert lines[:6] == ["0x010000ed", "0xedcba987", "1", "720", "479001600", str(0x82B40000)]
    for line, size in zip(lines[6:10], (1, 100, 4095, 4096), strict=True):
        found = re.fullmatch(r"(\d+) bytes, sent (\w+), received (\w+)", line)
        assert found is not None
        assert (int(found[1]), found[2]) == (size, found[3])
    assert lines[10] == f"{mode} {4 + 3 + 2 * 4}"
    device = guest.servers["edu"].device
    assert device.interrupts.mode.value == mode
    assert (device.dma.fault_count, device.error_count) == (0, 0)


# The serial port under 8250_pci.


@pytest.fixture
def line(guest: Guest) -> Iterator[socket.socket]:
    """The other end of the serial line."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(SECONDS)
        peer.connect(str(guest.folder / "line"))
        yield peer


def until(line: socket.socket, end: bytes) -> bytes:
    """Everything up to and including `end`."""
    data = bytearray()
    while not data.endswith(end):
        part = line.recv(1)
        assert part, f"the line went down after {bytes(data)!r}"
        data += part
    return bytes(data)


def exactly(line: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count and (part := line.recv(count - len(data))):
        data += part
    return bytes(data)


def test_stock_driver_binds_the_serial_port(guest: Guest) -> None:
    machine = guest.machine
    assert machine.check("readlink /sys/class/tty/ttyS2/device/driver").endswith("/bus/pci/drivers/serial\n")
    assert "uart:16550A" in machine.check(PORT_LINE)


def test_the_terminal_is_set_and_the_peer_is_seen(guest: Guest, line: socket.socket) -> None:
    machine = guest.machine
    device = guest.servers["serial"].device
    assert isinstance(device, PciSerial)
    settings = machine.check(f"exec 3<>{TTY}; stty 19200 -crtscts <&3; stty <&3; {PORT_LINE}")
    assert "speed 19200" in settings
    assert re.search(r"^2:.*\bCD\b", settings, re.MULTILINE)
    assert device.uart.state().divisor == 115200 // 19200
    line.shutdown(socket.SHUT_RDWR)
    line.close()
    machine.check(f"for i in 1 2 3 4 5; do {PORT_LINE} | grep -v CD && exit 0; sleep 0.1; done; exit 1")


@pytest.mark.parametrize(("directions", "size"), [("out", 24 << 10), ("in", 24 << 10), ("out in", 12 << 10)])
def test_long_transfers_arrive_whole(guest: Guest, line: socket.socket, directions: str, size: int) -> None:
    """Both ways at once is the transmitter's interrupts amid the receiver's."""
    data = os.urandom(size)
    command = f"exec 3<>{TTY}; stty raw -echo 115200 crtscts <&3; head -c {size} /dev/urandom > /tmp/out; "
    command += "printf R >&3; "  # from here on the guest takes what comes
    command += "cat /tmp/out >&3 & " if "out" in directions else ""
    command += f"head -c {size} <&3 | md5sum; " if "in" in directions else ""
    received = bytearray()

    def peer() -> None:
        until(line, b"R")
        sender = threading.Thread(target=line.sendall, args=(data if "in" in directions else b"",))
        sender.start()
        received.extend(exactly(line, size if "out" in directions else 0))
        sender.join(SECONDS)

    other_end = threading.Thread(target=peer)
    other_end.start()
    command += "wait; stty raw <&3; md5sum /tmp/out"  # stty waits until all has left (tcsetattr's TCSADRAIN)
    output = guest.machine.check(command, timeout=120)
    other_end.join(SECONDS)
    sums = [text.split()[0] for text in output.splitlines()]
    if "in" in directions:
        assert sums.pop(0) == hashlib.md5(data).hexdigest()
    if "out" in directions:
        assert sums.pop(0) == hashlib.md5(received).hexdigest()
    device = guest.servers["serial"].device
    assert device.counters["transmit_overruns"] == 0
    assert device.statistics()["stream_bytes_dropped"] == 0
    errors = guest.machine.check(PORT_LINE)
    assert not re.search(r"\b(fe|pe|brk|oe):", errors), errors


def test_somebody_can_log_in(guest: Guest, line: socket.socket) -> None:
    guest.machine.check("start-stop-daemon -S -b -x /sbin/getty -- -n -L -l /bin/sh 115200 ttyS2 vt100")
    until(line, b"# ")
    line.sendall(b"echo $((6 * 7)) on $(tty)\r")
    assert until(line, b"# ").split(b"\r\n")[1] == f"42 on {TTY}".encode()
    line.sendall(b"sh -c 'echo begun; exec sleep 100'\r")  # a job from its first word on
    until(line, b"\nbegun\r\n")
    line.sendall(b"\x03")
    until(line, b"# ")
    line.sendall(b"echo interrupted: $?\r")
    assert b"\ninterrupted: 130\r" in until(line, b"# ")
    line.sendall(b"exit\r")


# Plugging, and what is refused.


def when_there(folder: str) -> str:
    """Change to the folder of a device as soon as its driver has bound it."""
    return f"for i in $(seq 100); do [ -e {folder}/sum ] && break; sleep 0.1; done; cd {folder}"


def test_msi_adder_is_plugged_and_unplugged(guest: Guest) -> None:
    machine = guest.machine
    for _ in range(2):
        machine.plug(guest.serve("plugged", Adder(presentation="msi")))
        folder = guest.adder(5)
        added = machine.check(f"{when_there(folder)} && echo 20 22 > sum && cat sum interrupts")
        assert added == "42\n1\n"
        assert guest.servers["plugged"].device.interrupts.mode is InterruptMode.MSI
        machine.unplug("plugged").require("plugged")
        assert machine.run(f"ls -d {folder}").exit_code != 0
        assert guest.servers["plugged"].wait_idle(SECONDS)
        guest.end("plugged")
        assert machine.running


def test_unplugging_msix_is_refused_with_the_way_out(guest: Guest) -> None:
    with pytest.raises(IolaneError) as refusal:
        guest.machine.unplug("adder").require("adder")
    assert "MSI-X" in str(refusal.value)
    assert "presentation=msi" in (refusal.value.remedy or "")
    folder = guest.adder(1)
    assert guest.machine.check(f"echo 1 1 > {folder}/sum; cat {folder}/sum") == "2\n"


def test_migration_is_refused(guest: Guest) -> None:
    with pytest.raises(IolaneError, match=r"drop the state of .*edu") as refusal:
        guest.machine.migrate_to(QemuMachine(MachineConfig(incoming=True)))
    assert refusal.value.remedy


def test_the_guest_survives_the_kill_of_a_device_server(guest: Guest) -> None:
    machine = guest.machine
    folder = guest.adder(4)
    assert machine.check(f"echo 1 2 > {folder}/sum; cat {folder}/sum") == "3\n"
    assert guest.victims is not None
    process = guest.victims.endpoints[0].process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    assert guest.death_told.wait(SECONDS)
    (dead,) = guest.dead
    assert dead.device.id == "victim"
    for word in ("victim", "has gone", "unplug victim", "start its server again", "plug victim"):
        assert word in str(dead)
    assert machine.check(f"cat {folder}/sum") == "4294967295\n", "all ones: nobody answers"
    assert [dead.device.id for dead in machine.dead_servers()] == ["victim"]

    machine.unplug("victim").require("victim")
    guest.end_victim()
    machine.plug(guest.serve_victim())
    assert machine.check(f"{when_there(folder)} && echo 3 4 > sum && cat sum") == "7\n"
    assert machine.dead_servers() == []
