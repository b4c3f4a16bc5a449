"""NVMe under its stock drivers: Linux's, nvme-cli, SeaBIOS. One boot serves most of it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from iolane.backends.block import BlockBackend
from iolane.backends.memory import MemoryBackend
from iolane.carriers.vfio_user import VfioUserServer
from iolane.devices.nvme import Nvme
from iolane.devices.nvme.commands import Command
from iolane.devices.nvme.io import Io
from iolane.devices.nvme.spec import PSDT, IoOpcode
from iolane.engines.qemu.command_line import VfioUserDevice
from iolane.engines.qemu.initramfs import FSCK_EXT4, MKFS_EXT4, NVME, InitramfsContent
from iolane.engines.qemu.machine import MachineConfig, QemuMachine
from iolane.model.interrupts import InterruptMode
from iolane.model.workers import Workers
from iolane.testing.power_cut import FlushForgotten, PowerCut

pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]

MIB = 1 << 20
DATA = 64 * MIB
CONTENT = InitramfsContent(modules=["nvme", "ext4"], programs=[NVME, MKFS_EXT4, FSCK_EXT4])
WAIT = "for i in $(seq 100); do sleep 0.1;"
FILES = 24
FILE_SIZE = 256 * 1024
FULL, BAD = 4 * MIB, 8 * MIB


class Faulty(MemoryBackend):
    """Full from 4 MiB on, and unreadable from 8 MiB on."""

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if offset >= BAD:
            raise OSError(errno.EIO, "a bad sector")
        super().readv(offset, buffers)

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if offset >= FULL:
            raise OSError(errno.ENOSPC if offset < BAD else errno.EIO, "no")
        super().writev(offset, buffers)


class Watched(Nvme):
    """Counts how the guest says where the data of its reads and writes is."""

    def _make_parts(self) -> None:
        super()._make_parts()
        self.io = self.watched = WatchedIo(self)


class WatchedIo(Io):
    """Counts PRPs ("prp"), or the type of the SGL's descriptor that is in the command."""

    def __init__(self, controller: Nvme) -> None:
        super().__init__(controller)
        self.seen: Counter[str] = Counter()

    def execute(self, command: Command) -> None:
        entry = command.entry
        if entry.opcode in (IoOpcode.READ, IoOpcode.WRITE):
            kinds = {0: "data block", 2: "segment", 3: "last segment"}
            self.seen[kinds[entry.prp2 >> 60] if entry.flags & PSDT else "prp"] += 1
        super().execute(command)


@dataclass
class Guest:
    """The machine, and the controllers in this process by their serial number."""

    machine: QemuMachine
    controllers: dict[str, Nvme] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Serial number -> nvme0, nvme1 ... as the guest counts."""
    digest: str = ""
    """MD5 of the guest's /tmp/data."""

    def check(self, command: str, timeout: float = 120.0) -> str:
        return self.machine.check(command, timeout=timeout)

    def disk(self, serial: str, namespace: int = 1) -> str:
        return f"/dev/{self.names[serial]}n{namespace}"

    def learn_names(self) -> None:
        listed = self.check('for n in /sys/class/nvme/nvme*; do echo "${n##*/} $(cat $n/serial)"; done')
        self.names = {serial: name for name, serial in (line.split() for line in listed.splitlines())}

    def make_data(self) -> None:
        """64 MiB of noise in the guest's /tmp/data."""
        made = f"dd if=/dev/urandom of=/tmp/data bs=1M count={DATA // MIB} 2>/dev/null; md5sum < /tmp/data"
        self.digest = self.check(made).split()[0]

    def content(self, serial: str) -> MemoryBackend:
        backend = self.controllers[serial].namespaces[1].backend
        assert isinstance(backend, MemoryBackend)
        return backend


@contextlib.contextmanager
def booted(folder: Path, controllers: list[Nvme], **options: object) -> Iterator[Guest]:
    """A machine with these controllers."""
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(Workers(4))
        endpoints = []
        for controller in controllers:
            stack.callback(controller.close)
            server = VfioUserServer(controller, folder / f"{controller.serial}.sock", workers=workers)
            server.start()
            stack.callback(server.stop)
            endpoints.append(VfioUserDevice(controller.serial, server.path))
        config = MachineConfig(**{"name": "nvme", "devices": endpoints, "content": CONTENT, **options})  # type: ignore[arg-type]
        guest = Guest(stack.enter_context(QemuMachine(config)))
        guest.controllers = {controller.serial: controller for controller in controllers}
        if config.has_agent:
            guest.learn_names()
        yield guest
        assert [controller.error_count for controller in controllers] == [0] * len(controllers)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    folder = tmp_path_factory.mktemp("nvme")
    images = [folder / "first.raw", folder / "second.raw"]
    for image in images:
        image.touch()
        os.truncate(image, 80 * MIB)
    controllers = [
        Nvme(images[0], namespaces=images[1:], serial="msix", presentation="msix"),
        Nvme(backend=MemoryBackend(80 * MIB), serial="msi", presentation="msi"),
        Nvme(backend=MemoryBackend(80 * MIB), serial="intx", presentation="intx"),
        Nvme(backend=MemoryBackend(os.urandom(MIB), read_only=True), serial="fixed", lba_size=4096),
        Nvme(backend=PowerCut(MemoryBackend(64 * MIB), atomic=4096), serial="cut", lba_size=4096),
        Nvme(backend=FlushForgotten(MemoryBackend(64 * MIB), atomic=4096), serial="mutant", lba_size=4096),
        Nvme(backend=Faulty(16 * MIB), serial="faulty"),
        Watched(backend=MemoryBackend(80 * MIB), serial="lists"),
    ]
    with booted(folder, controllers, cpus=2, memory_mib=768) as guest:
        guest.make_data()
        yield guest


def write_and_read(guest: Guest, disk: str) -> str:
    """64 MiB through the disk. Returns their checksum, on which the guest's two sides agree."""
    read = guest.check(
        f"dd if=/tmp/data of={disk} bs=1M oflag=direct 2>/dev/null &&"
        f"dd if={disk} bs=1M count={DATA // MIB} iflag=direct 2>/dev/null | md5sum"
    )
    assert read.split()[0] == guest.digest
    return guest.digest


# Data.


@pytest.mark.parametrize("serial", ["msix", "msi", "intx"])
def test_64_mib_are_written_and_read_with_every_kind_of_interrupt(guest: Guest, serial: str) -> None:
    controller = guest.controllers[serial]
    read = write_and_read(guest, guest.disk(serial))
    stored = bytearray(DATA)
    controller.namespaces[1].backend.readv(0, [memoryview(stored)])
    assert hashlib.md5(stored).hexdigest() == read
    assert controller.interrupts.mode is InterruptMode(serial)
    assert controller.interrupts.delivered_count > 100
    assert controller.dma.fault_count == 0


@pytest.mark.parametrize("threshold", [0, 4096, 32768])
def test_linux_uses_scatter_gather_lists(guest: Guest, threshold: int) -> None:
    """From segments of `sgl_threshold` bytes on, and never with 0; data is the same. How many are as long as
    the default, 32768, is a matter of the guest's memory.
    """
    disk, controller = guest.disk("lists"), guest.controllers["lists"]
    assert isinstance(controller, Watched)
    seen = controller.watched.seen
    seen.clear()
    guest.check(f"echo {threshold} > /sys/module/nvme/parameters/sgl_threshold")
    guest.check(f"dd if=/dev/zero of={disk} bs=1M count={DATA // MIB} oflag=direct 2>/dev/null")
    read = write_and_read(guest, disk)
    buffered = guest.check(
        f"echo 3 > /proc/sys/vm/drop_caches; dd if={disk} bs=1M count={DATA // MIB} 2>/dev/null | md5sum"
    )
    print(threshold, dict(seen))
    assert buffered.split()[0] == read
    assert hashlib.md5(guest.content("lists").content[:DATA]).hexdigest() == read
    assert seen.total() > 100
    if threshold == 0:
        assert set(seen) == {"prp"}
    elif threshold == 4096:
        assert seen["last segment"] > 100
    assert controller.dma.fault_count == 0
    assert not controller.state.errors


def test_each_cpu_uses_its_own_queue_and_vector(guest: Guest) -> None:
    disk, controller = guest.disk("msix"), guest.controllers["msix"]
    for cpu in (0, 1):
        before = [controller.accounts.of(qid).commands for qid in (1, 2)]
        guest.check(f"taskset -c {cpu} dd if={disk} of=/dev/null bs=64k count=64 iflag=direct 2>/dev/null")
        after = [controller.accounts.of(qid).commands for qid in (1, 2)]
        assert max(new - old for old, new in zip(before, after, strict=True)) >= 64
    lines = guest.check(f"grep {guest.names['msix']}q /proc/interrupts").splitlines()
    assert len(lines) == 3
    assert all(sum(map(int, line.split()[1:3])) > 10 for line in lines)


def test_both_cpus_and_both_namespaces_at_once(guest: Guest) -> None:
    first, second = guest.disk("msix"), guest.disk("msix", 2)
    sums = guest.check(
        f"dd if=/tmp/data of={first} bs=256k count=64 oflag=direct 2>/dev/null &"
        f"dd if=/tmp/data of={second} bs=64k count=256 skip=100 oflag=direct 2>/dev/null; wait;"
        f"dd if={first} bs=1M count=16 2>/dev/null | md5sum;"
        "dd if=/tmp/data bs=1M count=16 2>/dev/null | md5sum;"
        f"dd if={second} bs=64k count=256 2>/dev/null | md5sum;"
        "dd if=/tmp/data bs=64k skip=100 count=256 2>/dev/null | md5sum"
    ).splitlines()
    assert sums[0] == sums[1]
    assert sums[2] == sums[3]


# Commands.


def test_what_linux_found_out(guest: Guest) -> None:
    queue = f"/sys/block/{guest.names['msix']}n1/queue"
    names = ("write_cache", "fua", "max_hw_sectors_kb", "logical_block_size")
    assert guest.check(f"cd {queue}; cat {' '.join(names)}").split("\n")[:4] == [
        "write back",
        "1",
        "1024",
        "512",
    ]
    assert int(guest.check(f"cat {queue}/discard_max_bytes")) > 0
    assert int(guest.check(f"cat {queue}/write_zeroes_max_bytes")) > 0
    uuid = guest.check(f"cat /sys/block/{guest.names['msix']}n1/uuid").strip()
    assert uuid == str(guest.controllers["msix"].namespaces[1].uuid)
    assert guest.controllers["msix"].state.shadow is not None


def nvme_json(guest: Guest, command: str) -> dict[str, int | str]:
    found: dict[str, int | str] = json.loads(guest.check(f"nvme {command} -o json"))
    return found


def test_nvme_cli(guest: Guest) -> None:
    name, disk, controller = guest.names["msix"], guest.disk("msix"), guest.controllers["msix"]
    identity = nvme_json(guest, f"id-ctrl /dev/{name}")
    assert (str(identity["sn"]).strip(), str(identity["mn"]).strip()) == ("msix", "iolane NVMe")
    assert (identity["nn"], identity["mdts"], identity["ver"]) == (2, 8, 0x20000)
    assert identity["sgls"] == 1 << 18 | 1
    smart = nvme_json(guest, f"smart-log /dev/{name}")
    health = controller.state.health
    assert int(smart["host_read_commands"]) <= health.reads
    assert int(smart["data_units_written"]) == -(-health.bytes_written // 512_000)
    assert int(smart["temperature"]) == health.temperature
    assert "uuid" in guest.check(f"nvme ns-descs {disk}")
    assert guest.check(f"nvme list-ns /dev/{name}").count("]:") == 2
    for command in ("error-log", "fw-log", "effects-log", "supported-log-pages", "changed-ns-list-log"):
        guest.check(f"nvme {command} /dev/{name}")
    for feature in (1, 2, 4, 6, 7, 8, 0xB):
        guest.check(
            f"nvme get-feature /dev/{name} -f {feature} -s 0; nvme get-feature /dev/{name} -f {feature} -s 3"
        )
    guest.check(f"nvme flush {disk}; nvme write-zeroes {disk} -s 0 -c 255; nvme dsm {disk} -d -s 256 -b 256")
    start = bytearray(512 * 512)
    controller.namespaces[1].backend.readv(0, [memoryview(start)])
    assert not any(start)


def test_a_wrong_command_gets_its_status_and_an_entry_in_the_error_log(guest: Guest) -> None:
    name = guest.names["msix"]
    result = guest.machine.run(
        f"nvme admin-passthru /dev/{name} --opcode=0x06 --cdw10=0x77 --data-len=4096 -r"
    )
    assert result.exit_code != 0
    assert "INVALID_FIELD" in result.output.upper() or "INVALID FIELD" in result.output.upper()
    assert guest.controllers["msix"].state.errors[0].status == 2
    assert "Invalid Field" in guest.check(f"nvme error-log /dev/{name} -e 1")


def test_reset_under_load_loses_nothing(guest: Guest) -> None:
    name, disk, controller = guest.names["msix"], guest.disk("msix"), guest.controllers["msix"]
    function = guest.check(f"readlink -f /sys/class/nvme/{name}/device").strip()
    before = controller.counters["function_resets"]
    found = guest.check(
        f"(dd if=/tmp/data of={disk} bs=128k oflag=direct 2>/dev/null; echo written > /tmp/done) &"
        f"for i in 1 2 3; do nvme reset /dev/{name}; done; echo 1 > {function}/reset; wait;"
        f"dd if={disk} bs=1M count={DATA // MIB} iflag=direct 2>/dev/null | md5sum;"
        "cat /tmp/done"
    ).split()
    assert (found[0], found[-1]) == (guest.digest, "written")
    assert controller.counters["function_resets"] == before + 1
    assert guest.check(f"cat /sys/class/nvme/{name}/state").strip() == "live"


def test_shutdown_is_complete_and_the_function_comes_back(guest: Guest) -> None:
    name, controller = guest.names["msi"], guest.controllers["msi"]
    function = guest.check(f"readlink -f /sys/class/nvme/{name}/device").strip()
    guest.check(f"echo 1 > {function}/remove")
    assert controller.bar0.CSTS.SHST == 2
    guest.check(
        f"echo 1 > /sys/bus/pci/rescan; {WAIT} grep -q '^msi *$' /sys/class/nvme/*/serial && exit; done"
    )
    guest.learn_names()
    disk = guest.disk("msi")
    guest.check(f"{WAIT} [ -b {disk} ] && break; done; dd if={disk} bs=1M count=1 of=/dev/null")


# Errors.


def test_a_read_only_namespace_with_4096_byte_blocks(guest: Guest) -> None:
    disk = guest.disk("fixed")
    block = disk.rpartition("/")[2]
    assert guest.check(f"cat /sys/block/{block}/ro /sys/block/{block}/queue/logical_block_size").split() == [
        "1",
        "4096",
    ]
    assert guest.machine.run(f"dd if=/dev/zero of={disk} bs=4k count=1").exit_code != 0
    digest = guest.check(f"md5sum {disk}").split()[0]
    assert digest == hashlib.md5(guest.content("fixed").content).hexdigest()


def test_a_namespace_that_becomes_read_only_is_noticed(guest: Guest) -> None:
    """By the Namespace Attribute Changed event."""
    block = guest.disk("msix", 2).rpartition("/")[2]
    for protected in (True, False):
        guest.controllers["msix"].set_write_protected(2, protected)
        guest.check(f"{WAIT} [ $(cat /sys/block/{block}/ro) = {protected:d} ] && exit; done; exit 1")


def test_errors_of_the_back_end_reach_the_guest(guest: Guest) -> None:
    disk = guest.disk("faulty")
    for command, words in (
        (
            f"dd if=/dev/zero of={disk} bs=4k seek={FULL // 4096} count=1 oflag=direct",
            "No space left on device",
        ),
        (f"dd if=/dev/zero of={disk} bs=4k seek={BAD // 4096} count=1 oflag=direct", "No data available"),
        (f"dd if={disk} of=/dev/null bs=4k skip={BAD // 4096} count=1 iflag=direct", "No data available"),
    ):
        result = guest.machine.run(f"{command} 2>&1", timeout=60)
        assert result.exit_code != 0
        assert words in result.output
    guest.check(f"dd if=/dev/zero of={disk} bs=4k seek=5 count=1 oflag=direct")
    assert guest.controllers["faulty"].state.health.media_errors >= 2


# Durability.


def set_forgetting(backend: PowerCut, forgets: bool) -> None:
    """Begin or end the mutation of a mutant."""
    if isinstance(backend, FlushForgotten):
        backend.forgets = forgets


def survives_a_power_cut(guest: Guest, serial: str, seed: int | None) -> str:
    """Fill ext4, fsync, cut the power under load, restore it. Empty, or what is wrong afterwards."""
    disk, backend = guest.disk(serial), guest.controllers[serial].namespaces[1].backend
    assert isinstance(backend, PowerCut)
    set_forgetting(backend, False)
    guest.check(f"mkfs.ext4 -q -F {disk} && mount -t ext4 {disk} /mnt && sync")
    backend.flush()
    set_forgetting(backend, True)
    blocks = FILE_SIZE // 65536
    guest.check(
        f"for i in $(seq {FILES}); do dd if=/tmp/data of=/mnt/f$i bs=64k skip=$((i * {blocks}))"
        f" count={blocks} conv=fsync 2>/dev/null || exit 1; done; sync /mnt"
    )
    guest.check(
        "setsid sh -c 'while :; do dd if=/tmp/data of=/mnt/loose bs=1M count=6; cp /mnt/loose /mnt/copy;"
        " rm /mnt/copy; sync; done' > /dev/null 2>&1 & echo $! > /tmp/writer; sleep 1"
    )
    backend.cut(seed)
    guest.check(f"kill -9 -- -$(cat /tmp/writer); {WAIT} umount /mnt && exit; done; exit 1")
    backend.restore()
    set_forgetting(backend, False)
    return guest.machine.run(
        f"echo 3 > /proc/sys/vm/drop_caches; mount -t ext4 {disk} /mnt || {{ echo no mount; exit 1; }};"
        f"for i in $(seq {FILES}); do"
        f" a=$(dd if=/tmp/data bs=64k skip=$((i * {blocks})) count={blocks} 2>/dev/null | md5sum);"
        ' b=$(md5sum < /mnt/f$i); [ "$a" = "$b" ] || echo file $i is not intact; done;'
        f"umount /mnt; fsck.ext4 -fn {disk} > /tmp/fsck 2>&1 || {{ echo inconsistent; cat /tmp/fsck; }}",
        timeout=120,
    ).output


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_fsynced_files_survive_a_power_cut(guest: Guest, seed: int | None) -> None:
    assert survives_a_power_cut(guest, "cut", seed) == ""


def test_the_proof_fails_on_a_disk_whose_flush_does_nothing(guest: Guest) -> None:
    assert "is not intact" in survives_a_power_cut(guest, "mutant", None)


# Other machines.


def test_behind_an_iommu(tmp_path: Path) -> None:
    """Intel's in caching mode: one map and unmap a page, so whatever is not mapped at its time is a fault."""
    controller = Nvme(backend=MemoryBackend(80 * MIB), serial="iommu")
    with booted(tmp_path, [controller], iommu=True, memory_mib=512) as guest:
        assert "DMAR" in guest.check("dmesg | grep -i dmar")
        guest.make_data()
        read = write_and_read(guest, guest.disk("iommu"))
        assert hashlib.md5(guest.content("iommu").content[:DATA]).hexdigest() == read
        assert controller.dma.fault_count == 0


def boot_disk(folder: Path) -> bytes:
    """A disk that SeaBIOS boots: see nvme_boot.S."""
    source = Path(__file__).with_name("nvme_boot.S")
    unlinked, sector = folder / "boot.o", folder / "boot.bin"
    subprocess.run(["as", "--32", "-o", unlinked, source], check=True)
    linker = ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "-e", "start", "--oformat", "binary"]
    subprocess.run([*linker, "-o", sector, unlinked], check=True)
    text = b"booted from NVMe "
    return sector.read_bytes() + os.urandom(99 * 512) + text + bytes(MIB - 100 * 512 - len(text))


@pytest.mark.parametrize("lba_size", [512])
def test_seabios_boots_from_it(tmp_path: Path, lba_size: int) -> None:
    disk = boot_disk(tmp_path)
    backend: BlockBackend = MemoryBackend(disk)
    controller = Nvme(backend=backend, serial="boot", lba_size=lba_size)
    with booted(tmp_path, [controller], kernel=None, memory_mib=128) as guest:
        total = sum(disk[512 : 101 * 512])
        guest.machine.console.wait_for(f"booted from NVMe {total:08x}W", timeout=60)
        assert guest.content("boot").content[200 * 512 : 201 * 512] == disk[512:1024]
