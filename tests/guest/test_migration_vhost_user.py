"""A guest moves between two QEMU processes while it uses a disk and a network carried by vhost-user.

Each side has a back end of its own, both have the same image open, and the destination's takes the image's
lock when the rings start there. What devices write to the guest's memory meanwhile must come along: the guest
keeps the pages that it read into and compares them at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from iolane.backends.lock import ImageLock
from iolane.carriers.vhost_user import VhostUserServer
from iolane.carriers.vhost_user.session import Session
from iolane.carriers.vhost_user.vring import Start
from iolane.devices.virtio.block import Block
from iolane.engines.qemu.initramfs import InitramfsContent
from iolane.engines.qemu.machine import MachineConfig, QemuMachine
from iolane.engines.qemu.migration import Migration
from iolane.engines.qemu.vhost_user import VhostUserDevice
from iolane.errors import IolaneError
from iolane.model.workers import Workers
from iolane.uapi.virtio import DeviceType

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]

SIZE = 16 << 20
"""As many blocks as the guest's load writes."""
MODULES = ("virtio_pci", "virtio_blk", "virtio_net")
RIGHT = "failed 0, wrong when read 0, wrong pages 0, wrong blocks 0"


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's load, compiled."""
    program = tmp_path_factory.mktemp("load") / "load"
    source = Path(__file__).with_name("load.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-static", "-s", "-o", program, source], check=True)
    return program


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, because socket paths are."""
    with tempfile.TemporaryDirectory(prefix="iolane-test-") as name:
        yield Path(name)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@contextlib.contextmanager
def served(image: Path, socket: Path) -> Iterator[Block]:
    """The image behind a back end of its own."""
    block = Block(image)
    with Workers() as workers, contextlib.closing(block), VhostUserServer(block, socket, workers=workers):
        yield block


def config(load: Path, *devices: VhostUserDevice) -> MachineConfig:
    content = InitramfsContent(modules=MODULES, files={"bin/load": load})
    return MachineConfig(name="source", memory_mib=192, devices=devices, content=content)


def at_other_end(config: MachineConfig, *devices: VhostUserDevice) -> MachineConfig:
    return replace(config, name="destination", devices=devices, incoming=True)


def disk(socket: Path) -> VhostUserDevice:
    return VhostUserDevice("disk", socket, DeviceType.BLOCK)


def start_load(machine: QemuMachine, what: str) -> None:
    machine.check(f"setsid load {what} >/dev/null 2>&1 </dev/null &")


def work_on(machine: QemuMachine, what: str, amount: int) -> None:
    """Until the load has done this much more."""
    file = f"/tmp/{what}.count"
    machine.check(
        f"until [ -e {file} ]; do sleep 0.02; done; before=$(cat {file});"
        f" until [ $(($(cat {file}) - before)) -ge {amount} ]; do sleep 0.02; done",
        timeout=60,
    )


def verdict(machine: QemuMachine, what: str) -> str:
    file = f"/tmp/{what}.verdict"
    return machine.check(f"touch /tmp/stop; until [ -e {file} ]; do sleep 0.02; done; cat {file}", timeout=60)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def move(source: QemuMachine, destination: QemuMachine) -> Migration:
    moved = source.migrate_to(destination)
    assert not source.running
    assert moved.passes >= 2, "memory changed while it went over"
    return moved


@pytest.mark.slow
def test_the_guest_notices_when_nothing_is_logged(
    image: Path, load: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mutant of the carrier: it proves that the test below tests the log."""
    prepare = Session._prepare
    monkeypatch.setattr(Session, "apply_log", lambda self: None)
    monkeypatch.setattr(Session, "_prepare", lambda self, vring: without_log(prepare(self, vring)))
    first, second = folder / "a", folder / "b"
    with served(image, first), served(image, second):
        wanted = config(load, disk(first))
        with QemuMachine(wanted) as source, QemuMachine(at_other_end(wanted, disk(second))) as destination:
            start_load(source, "disk /dev/vda")
            work_on(source, "disk", 2000)
            move(source, destination)
            found = verdict(destination, "disk")
            assert re.search(r"wrong pages [1-9]", found), found


def without_log(start: Start | None) -> Start | None:
    return None if start is None else replace(start, log=None)


def test_a_guest_moves_under_block_load(image: Path, load: Path, folder: Path) -> None:
    first, second = folder / "a", folder / "b"
    with served(image, first) as here, served(image, second) as there:
        wanted = config(load, disk(first))
        with QemuMachine(wanted) as source, QemuMachine(at_other_end(wanted, disk(second))) as destination:
            start_load(source, "disk /dev/vda")
            work_on(source, "disk", 2000)
            assert here.queues[0].running
            assert not there.queues[0].running
            move(source, destination)
            work_on(destination, "disk", 2000)
            assert there.queues[0].running
            assert not here.queues[0].running
            with pytest.raises(IolaneError, match="in use by another program"):
                ImageLock(image, exclusive=True).acquire()
            assert verdict(destination, "disk").strip() == RIGHT
            seen = destination.check("echo 3 >/proc/sys/vm/drop_caches; sha256sum /dev/vda", timeout=60)
            assert re.findall(r"[0-9a-f]{64}", seen) == [digest(image.read_bytes())]
            assert here.error_count == there.error_count == 0
