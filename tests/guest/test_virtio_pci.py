"""Virtio block, console and rng as PCI functions in a stock Debian guest: one boot, then every check."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from iolane.backends.memory import MemoryBackend
from iolane.carriers.vfio_user import VfioUserServer
from iolane.devices.virtio.block import BlockFunction
from iolane.devices.virtio.console import ConsoleFunction
from iolane.devices.virtio.rng import RngFunction
from iolane.engines.qemu.command_line import VfioUserDevice
from iolane.engines.qemu.initramfs import MKFS_EXT4, InitramfsContent
from iolane.engines.qemu.machine import MachineConfig, QemuMachine
from iolane.model.interrupts import InterruptMode
from iolane.model.pci import PciDevice
from iolane.model.workers import Workers

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

SECONDS = 60.0
MIB = 1 << 20
DISK = 64 * MIB
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "virtio-rng", "ext4")


class FullDisk(MemoryBackend):
    """Its first MiB takes writes; behind it there is no space left, and at the end there are bad sectors."""

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if offset >= MIB:
            raise OSError(errno.ENOSPC, "no space left")
        super().writev(offset, buffers)

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if offset >= 3 * MIB:
            raise OSError(errno.EIO, "bad sector")
        super().readv(offset, buffers)


@dataclass
class Guest:
    """The machine, and this process's side of its devices."""

    machine: QemuMachine
    folder: Path
    image: Path
    servers: dict[str, VfioUserServer] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    """Name of a device -> its virtio device in the guest's sysfs."""

    def find(self, name: str, port: int) -> None:
        """The root ports are numbered in the order of the devices."""
        self.places[name] = self.machine.check(
            f"cd /sys/bus/pci/devices/0000:{port:02x}:00.0/ && echo $PWD/virtio*"
        ).strip()

    def disk(self, name: str) -> str:
        """The name of a disk: vda, vdb ..."""
        return self.machine.check(f"ls {self.places[name]}/block").strip()

    def block(self, name: str) -> BlockFunction:
        device = self.servers[name].device
        assert isinstance(device, BlockFunction)
        return device

    def console(self, name: str) -> ConsoleFunction:
        device = self.servers[name].device
        assert isinstance(device, ConsoleFunction)
        return device


def _devices(folder: Path, image: Path) -> dict[str, PciDevice]:
    read_only = folder / "read-only.raw"
    read_only.write_bytes(os.urandom(4 * MIB))
    return {
        "disk": BlockFunction(image, serial="iolane-serial-0001", queues=2),
        "fixed": BlockFunction(read_only, read_only=True, presentation="intx", block_size=4096),
        "full": BlockFunction(backend=FullDisk(4 * MIB)),
        "plain": ConsoleFunction(f"listen:{folder / 'plain'}", columns=80, rows=25),
        "ports": ConsoleFunction(
            f"listen:{folder / 'ports'}",
            port=[f"org.iolane.data=listen:{folder / 'data'}"],
            max_ports=4,
            columns=100,
            rows=30,
        ),
        "rng": RngFunction(),
    }


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    folder = tmp_path_factory.mktemp("virtio")
    image = folder / "disk.raw"
    image.write_bytes(os.urandom(DISK))
    with contextlib.ExitStack() as stack:
        machine = QemuMachine()
        guest = Guest(machine, folder, image)
        workers = stack.enter_context(Workers(2))
        devices = []
        for name, device in _devices(folder, image).items():
            stack.callback(device.close)
            server = VfioUserServer(device, folder / f"{name}.sock", workers=workers)
            guest.servers[name] = server
            devices.append(VfioUserDevice(name, server.path))
            server.start()
            stack.callback(server.stop)
        machine.config = MachineConfig(
            name="virtio-pci",
            cpus=2,
            devices=devices,
            content=InitramfsContent(modules=MODULES, programs=(MKFS_EXT4,)),
        )
        stack.enter_context(machine)
        for port, name in enumerate(guest.servers, start=1):
            guest.find(name, port)
        yield guest


@pytest.fixture(autouse=True)
def nothing_went_wrong(guest: Guest) -> Iterator[None]:
    yield
    for name, server in guest.servers.items():
        shown = server.device.describe()
        assert shown["errors"] == 0, name
        assert shown["dma_faults"] == 0, name
        assert not [key for key in shown if key.startswith("rejected_")], name


# Block.


def test_stock_driver_shows_the_disk(guest: Guest) -> None:
    disk = f"/sys/block/{guest.disk('disk')}"
    shown = guest.machine.check(
        f"cat {disk}/size {disk}/serial; echo; cd {disk}/queue; cat logical_block_size physical_block_size "
        "minimum_io_size write_cache discard_max_bytes write_zeroes_max_bytes max_segments;"
        f"ls {disk}/mq | wc -l"
    ).split()
    assert shown[:2] == [str(DISK // 512), "iolane-serial-0001"]
    assert shown[2:5] == ["512", "4096", "4096"]
    assert shown[5:7] == ["write", "back"]
    assert int(shown[7]) > 0
    assert int(shown[8]) > 0
    assert shown[9:] == ["254", "2"]
    function = guest.block("disk")
    assert function.interrupts.mode is InterruptMode.MSIX
    assert function.virtio.status == 0xF
    assert function.virtio.acknowledged & ~function.virtio.offered == 0


def test_blocks_are_the_same_on_both_sides(guest: Guest) -> None:
    disk = f"/dev/{guest.disk('disk')}"
    seen = guest.machine.check(f"dd if={disk} bs=1M 2>/dev/null | md5sum", timeout=120).split()[0]
    assert seen == hashlib.md5(guest.image.read_bytes()).hexdigest()
    written = guest.machine.check(
        "dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null;"
        f"dd if=/tmp/data of={disk} bs=1M seek=20 conv=fsync 2>/dev/null; md5sum /tmp/data; rm /tmp/data",
        timeout=120,
    ).split()[0]
    with guest.image.open("rb") as file:
        file.seek(20 * MIB)
        assert hashlib.md5(file.read(8 * MIB)).hexdigest() == written


def test_a_file_system_lives_on_it(guest: Guest) -> None:
    """mkfs discards and writes zeroes; files come back after the page cache was dropped."""
    disk = f"/dev/{guest.disk('disk')}"
    output = guest.machine.check(
        f"mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 {disk} && mount {disk} /mnt &&"
        "for i in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/mnt/$i bs=100k count=$i 2>/dev/null; done;"
        "cat /mnt/? | md5sum; umount /mnt; echo 3 > /proc/sys/vm/drop_caches;"
        f"mount {disk} /mnt; cat /mnt/? | md5sum; umount /mnt",
        timeout=120,
    ).splitlines()
    assert output[0] == output[1]


def test_the_disk_grows_while_it_is_used(guest: Guest) -> None:
    disk = guest.disk("disk")
    os.truncate(guest.image, DISK + 16 * MIB)
    guest.block("disk").virtio.resize()
    wanted = (DISK + 16 * MIB) // 512
    found = guest.machine.check(
        f"for i in 1 2 3 4 5 6 7 8 9 10; do s=$(cat /sys/block/{disk}/size); [ $s = {wanted} ] && break;"
        f" sleep 0.2; done; echo $s;"
        f"echo end | dd of=/dev/{disk} bs=512 seek={wanted - 1} conv=fsync 2>/dev/null"
    )
    assert int(found) == wanted
    with guest.image.open("rb") as file:
        file.seek((wanted - 1) * 512)
        assert file.read(4) == b"end\n"


def test_a_read_only_disk_with_the_interrupt_pin(guest: Guest) -> None:
    disk = guest.disk("fixed")
    assert guest.machine.check(
        f"cat /sys/block/{disk}/ro /sys/block/{disk}/queue/logical_block_size"
    ).split() == [
        "1",
        "4096",
    ]
    seen = guest.machine.check(f"dd if=/dev/{disk} bs=64k 2>/dev/null | md5sum").split()[0]
    assert seen == hashlib.md5((guest.folder / "read-only.raw").read_bytes()).hexdigest()
    assert guest.machine.run(f"echo x > /dev/{disk}").exit_code != 0
    assert guest.block("fixed").interrupts.mode is InterruptMode.INTX


def test_errors_of_the_host_reach_the_guest(guest: Guest) -> None:
    """ENOSPC and EIO are S_IOERR; what can be done is done, and the device goes on."""
    disk = f"/dev/{guest.disk('full')}"
    machine = guest.machine
    assert machine.run(f"dd if=/dev/zero of={disk} bs=64k count=16 conv=fsync").exit_code == 0
    assert machine.run(f"dd if=/dev/zero of={disk} bs=64k seek=20 count=1 conv=fsync").exit_code != 0
    assert machine.run(f"dd if={disk} of=/dev/null bs=64k skip=56 count=1").exit_code != 0
    assert machine.run(f"dd if={disk} of=/dev/null bs=64k count=16").exit_code == 0
    counters = guest.block("full").counters
    assert counters["errors_ENOSPC"] > 0
    assert counters["errors_EIO"] > 0


def test_the_driver_can_come_back(guest: Guest) -> None:
    """Unbind and bind: reset, negotiation and queues anew."""
    before = guest.disk("full")
    place = guest.places["full"].rsplit("/", 1)[1]
    driver = "/sys/bus/virtio/drivers/virtio_blk"
    guest.machine.check(f"cd {driver} && echo {place} > unbind && echo {place} > bind")
    assert guest.disk("full") == before
    assert guest.machine.run(f"dd if=/dev/{before} of=/dev/null bs=64k count=16").exit_code == 0


# Console.


@contextlib.contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(SECONDS)
        peer.connect(str(path))
        yield peer


def exactly(line: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count and (part := line.recv(count - len(data))):
        data += part
    return bytes(data)


def exchange(guest: Guest, peer: socket.socket, terminal: str, size: int) -> None:
    """Random bytes both ways at once, compared by checksums."""
    data, received = os.urandom(size), bytearray()

    def other_end() -> None:
        assert exactly(peer, 1) == b"R"
        sender = threading.Thread(target=peer.sendall, args=(data,))
        sender.start()
        received.extend(exactly(peer, size))
        sender.join(SECONDS)

    thread = threading.Thread(target=other_end)
    thread.start()
    output = guest.machine.check(
        f"exec 3<>{terminal}; stty raw -echo <&3 2>/dev/null; head -c {size} /dev/urandom > /tmp/out;"
        f"printf R >&3; cat /tmp/out >&3 & head -c {size} <&3 | md5sum; wait; md5sum /tmp/out",
        timeout=120,
    )
    thread.join(SECONDS)
    sums = [line.split()[0] for line in output.splitlines()]
    assert sums == [hashlib.md5(data).hexdigest(), hashlib.md5(received).hexdigest()]


def terminal(guest: Guest, name: str) -> str:
    """hvc of a console: the plain one is found first, as its port comes first."""
    return f"/dev/hvc{list(guest.servers).index(name) - list(guest.servers).index('plain')}"


@pytest.mark.parametrize("name", ["plain", "ports"])
def test_console_bytes_are_the_same_on_both_sides(guest: Guest, name: str) -> None:
    with connected(guest.folder / name) as peer:
        exchange(guest, peer, terminal(guest, name), 100_000)


def wait_size(guest: Guest, name: str, wanted: str) -> None:
    """The terminal is kept open: the driver sets the size some time after the first open."""
    found = guest.machine.check(
        f"exec 3<>{terminal(guest, name)}; for i in 1 2 3 4 5 6 7 8 9 10; do s=$(stty size <&3);"
        f" [ \"$s\" = '{wanted}' ] && break; sleep 0.2; done; echo $s"
    )
    assert found.splitlines()[-1].strip() == wanted


@pytest.mark.parametrize(("name", "first"), [("plain", "25 80"), ("ports", "30 100")])
def test_the_guest_follows_the_size_of_the_window(guest: Guest, name: str, first: str) -> None:
    """By the configuration, and by RESIZE messages where there are several ports."""
    with connected(guest.folder / name):
        wait_size(guest, name, first)
        guest.console(name).virtio.resize(132, 43)
        wait_size(guest, name, "43 132")


def test_ports_have_names_and_carry_bytes(guest: Guest) -> None:
    machine, place = guest.machine, guest.places["ports"]
    names = dict(
        line.split("=", 1)
        for line in machine.check(
            f"cd {place}/virtio-ports; for p in *; do echo $p=$(cat $p/name 2>/dev/null); done"
        ).splitlines()
    )
    port = next(key for key, name in names.items() if name == "org.iolane.data")
    with connected(guest.folder / "data") as peer:
        exchange(guest, peer, f"/dev/{port}", 100_000)
        _peer_is_seen(guest, port, True)
    _peer_is_seen(guest, port, False)


def _peer_is_seen(guest: Guest, port: str, wanted: bool) -> None:
    """The guest is told who is at the other end."""
    number = int(port.rsplit("p", 1)[1])
    deadline = time.monotonic() + SECONDS
    while guest.console("ports").virtio.ports[number].host_open is not wanted:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ports_come_and_go(guest: Guest) -> None:
    console, place = guest.console("ports").virtio, guest.places["ports"]
    port = console.add_port("org.iolane.later", f"listen:{guest.folder / 'later'}")
    seen = "for i in 1 2 3 4 5 6 7 8 9 10; do grep -l later */name && break; sleep 0.2; done"
    assert guest.machine.check(f"cd {place}/virtio-ports; {seen}").strip().endswith(f"p{port.index}/name")
    console.remove_port(port.index)
    gone = "for i in 1 2 3 4 5 6 7 8 9 10; do grep -q later */name || break; sleep 0.2; done;"
    gone += "grep -l later */name"
    assert guest.machine.run(f"cd {place}/virtio-ports; {gone}").output == ""


# Rng.


def test_entropy_reaches_the_guest(guest: Guest) -> None:
    machine = guest.machine
    assert "virtio_rng" in machine.check("cat /sys/class/misc/hw_random/rng_available")
    before = guest.servers["rng"].device.counters["bytes_delivered"]
    machine.check("echo virtio_rng.0 > /sys/class/misc/hw_random/rng_current")
    sums = [
        machine.check("dd if=/dev/hwrng bs=4k count=16 2>/dev/null | md5sum; ").split()[0] for _ in range(2)
    ]
    assert sums[0] != sums[1]
    assert guest.servers["rng"].device.counters["bytes_delivered"] >= before + 2 * 16 * 4096 - 4096
