"""The block device carried by vhost-user, used by stock guests: Debian under QEMU, and User Mode Linux.

On both data planes; data is compared both ways by checksums.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from iolane.carriers.vhost_user import VhostUserServer
from iolane.carriers.vhost_user.choice import PLANES
from iolane.devices.virtio.block import Block
from iolane.engines.qemu.command_line import Accelerator
from iolane.engines.qemu.initramfs import MKFS_EXT4, InitramfsContent
from iolane.engines.qemu.machine import MachineConfig, QemuMachine
from iolane.engines.qemu.vhost_user import VhostUserDevice
from iolane.engines.uml.machine import UmlConfig, UmlDevice, UmlMachine
from iolane.model.workers import Workers
from iolane.uapi.virtio import DeviceType
from tests.unit.carriers.vhost_user.crash import BackEnd

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

MIB = 1 << 20
DISK = 9 * MIB
QUEUES = 2
KILLS = 5
MODULES = ("virtio_pci", "virtio_blk", "ext4")


class Machine(Protocol):
    """What both engines' machines have."""

    def check(self, command: str, *, timeout: float = 60.0) -> str: ...


@dataclass
class Guest:
    """A machine with the disk as /dev/vda, and this process's side of it."""

    machine: Machine
    device: Block
    server: VhostUserServer
    image: Path
    data: bytes

    def checksum(self, path: str) -> str:
        return self.machine.check(f"sha256sum {path}").split()[0]


def disk(folder: Path, size: int = DISK) -> tuple[Path, bytes]:
    image, data = folder / "disk.raw", random.Random(size).randbytes(size)
    image.write_bytes(data)
    return image, data


def qemu(
    socket: Path, *, kernel_queues: int = QUEUES, content: InitramfsContent | None = None
) -> QemuMachine:
    device = VhostUserDevice("disk", socket, DeviceType.BLOCK, queues=kernel_queues)
    content = content or InitramfsContent(modules=MODULES, programs=[MKFS_EXT4])
    return QemuMachine(
        MachineConfig(name="block", cpus=2, devices=[device], content=content, accelerator=Accelerator.TCG)
    )


def uml(socket: Path) -> UmlMachine:
    content = InitramfsContent(modules=["virtio_blk"])
    return UmlMachine(UmlConfig(name="block", devices=[UmlDevice(socket, DeviceType.BLOCK)], content=content))


GUESTS = [
    ("qemu", "compiled"),
    pytest.param(("qemu", "python"), marks=pytest.mark.slow),
    ("uml", "compiled"),
    ("uml", "python"),
]


@pytest.fixture(scope="module", params=GUESTS)
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    engine, plane = request.param
    folder = tmp_path_factory.mktemp("b")
    image, data = disk(folder)
    device = Block(image, queues=QUEUES, serial="vhost-user-disk")
    with Workers(4) as workers:
        with VhostUserServer(device, folder / "s", workers=workers, plane=PLANES[plane]) as server:
            with qemu(server.path) if engine == "qemu" else uml(server.path) as machine:
                yield Guest(machine, device, server, image, data)
            assert server.wait_idle(10)
        rejected = {kind.name: count for kind, count in server.statistics.rejections.items() if count}
        assert not rejected
        assert not device.error_count
    device.close()


def test_the_guest_reads_what_is_there(guest: Guest) -> None:
    assert guest.checksum("/dev/vda") == hashlib.sha256(guest.data).hexdigest()
    assert guest.machine.check("cat /sys/block/vda/serial").strip() == "vhost-user-disk"
    assert int(guest.machine.check("cat /sys/block/vda/size")) == DISK // 512


@pytest.mark.parametrize("size", ["4k", "64k", "1M"])
def test_what_the_guest_writes_is_there(guest: Guest, size: str) -> None:
    guest.machine.check("dd if=/dev/urandom of=/tmp/data bs=1M count=4")
    guest.machine.check(f"dd if=/tmp/data of=/dev/vda bs={size} seek=0 conv=fsync,notrunc oflag=direct")
    with guest.image.open("rb") as file:
        assert hashlib.sha256(file.read(4 * MIB)).hexdigest() == guest.checksum("/tmp/data")
    guest.machine.check("echo 3 > /proc/sys/vm/drop_caches; rm /tmp/data")


def test_discarded_blocks_read_as_zeroes(guest: Guest) -> None:
    offset = 6 * MIB
    guest.machine.check(f"blkdiscard -o {offset} -l {MIB} /dev/vda")
    with guest.image.open("rb") as file:
        file.seek(offset)
        assert file.read(MIB) == bytes(MIB)


def test_the_write_cache_can_be_switched_off(guest: Guest) -> None:
    """The guest's choice outlives the driver, a pause and a reset, none of which QEMU tells of."""
    guest.machine.check("echo 'write through' > /sys/block/vda/cache_type")
    assert not guest.device.writeback
    if isinstance(guest.machine, QemuMachine):
        guest.machine.qmp.execute("stop")
        guest.machine.qmp.execute("cont")
        assert guest.machine.check("cat /sys/block/vda/cache_type").strip() == "write through"
        assert not guest.device.writeback
    guest.machine.check("echo 'write back' > /sys/block/vda/cache_type")
    assert guest.device.writeback


def test_the_disk_grows_while_it_is_used(guest: Guest) -> None:
    os.truncate(guest.image, 2 * DISK)
    guest.device.resize()
    grown = f"[ $(cat /sys/block/vda/size) = {2 * DISK // 512} ]"
    guest.machine.check(f"for i in $(seq 100); do {grown} && break; sleep 0.1; done")
    assert int(guest.machine.check("cat /sys/block/vda/size")) == 2 * DISK // 512
    guest.machine.check(
        f"dd if=/dev/zero bs=1M count=1 | tr '\\0' A | dd of=/dev/vda bs=1M seek={DISK // MIB}"
    )
    guest.machine.check("sync")
    with guest.image.open("rb") as file:
        file.seek(DISK)
        assert file.read(MIB) == b"A" * MIB


def test_the_driver_may_come_and_go(guest: Guest) -> None:
    before = guest.checksum("/dev/vda")
    for _ in range(3):
        guest.machine.check("rmmod virtio_blk && insmod /lib/modules/virtio_blk.ko")
        assert guest.checksum("/dev/vda") == before


def test_a_file_system(guest: Guest) -> None:
    if not isinstance(guest.machine, QemuMachine):
        pytest.skip("User Mode Linux's initramfs has no mkfs")
    guest.machine.check(
        "mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt && "
        "dd if=/dev/urandom of=/tmp/f bs=1M count=3 && cp /tmp/f /mnt/f && umount /mnt && "
        "mount -t ext4 /dev/vda /mnt && cmp /tmp/f /mnt/f && umount /mnt"
    )


def test_a_pause_and_a_reset(guest: Guest) -> None:
    if not isinstance(guest.machine, QemuMachine):
        pytest.skip("User Mode Linux has neither")
    before = guest.checksum("/dev/vda")
    for _ in range(3):
        guest.machine.qmp.execute("stop")
        guest.machine.qmp.execute("cont")
        assert guest.checksum("/dev/vda") == before
    guest.machine.reset()
    assert guest.checksum("/dev/vda") == before


@pytest.mark.parametrize("plane", ["compiled", pytest.param("python", marks=pytest.mark.slow)])
def test_the_back_end_is_killed_under_a_guest(tmp_path: Path, plane: str) -> None:
    """QEMU keeps what is in flight and connects again; the guest only sees requests that take longer."""
    image, _ = disk(tmp_path)
    with BackEnd(image, tmp_path / "s", plane) as back_end, qemu(tmp_path / "s") as machine:
        machine.check("dd if=/dev/urandom of=/tmp/data bs=1M count=6")
        done: list[str] = []
        command = (
            "for i in 1 2 3; do dd if=/tmp/data of=/dev/vda bs=4k oflag=direct conv=notrunc || exit 1; done"
        )
        writer = threading.Thread(target=lambda: done.append(machine.check(command, timeout=120)))
        writer.start()
        kills = 0
        for _ in range(KILLS):
            writer.join(0.3)
            kills += writer.is_alive()
            back_end.kill()
            back_end.start()
        writer.join()
        assert done
        assert kills >= 2, "the guest was not writing any more"
        machine.check("echo 3 > /proc/sys/vm/drop_caches")
        wanted = machine.check("sha256sum /tmp/data").split()[0]
        assert machine.check(f"head -c {6 * MIB} /dev/vda | sha256sum").split()[0] == wanted
        with image.open("rb") as file:
            assert hashlib.sha256(file.read(6 * MIB)).hexdigest() == wanted


@pytest.mark.parametrize("plane", sorted(PLANES))
def test_a_read_only_disk(tmp_path: Path, plane: str) -> None:
    image, data = disk(tmp_path)
    image.chmod(0o444)
    device = Block(image, read_only=True)
    with (
        Workers(1) as workers,
        VhostUserServer(device, tmp_path / "s", workers=workers, plane=PLANES[plane]),
    ):
        with uml(tmp_path / "s") as machine:
            assert machine.check("cat /sys/block/vda/ro").strip() == "1"
            assert machine.run("dd if=/dev/zero of=/dev/vda bs=4k count=1").exit_code
            assert machine.check("sha256sum /dev/vda").split()[0] == hashlib.sha256(data).hexdigest()
    device.close()
