"""libblkio as a front end of our block device: by qemu-io, whose driver virtio-blk-vhost-user it is."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from iolane.bench.peers import storage_daemon
from iolane.carriers.vhost_user import VhostUserServer
from iolane.carriers.vhost_user.choice import PLANES
from iolane.devices.virtio.block import Block
from iolane.engines.qemu.archive import Archive, Manifest
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.provision import SUITES
from iolane.engines.qemu.sources import this_machine
from iolane.model.workers import Workers

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

MIB = 1 << 20
LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = f"{LIBRARIES}/ld-linux-x86-64.so.2"


class QemuIo:
    """qemu-io of the private QEMU, with the driver and the library from their packages."""

    def __init__(self, cache: Cache) -> None:
        storage_daemon(cache)
        tools = cache.root / "qemu-utils" / SUITES.name
        version = Manifest.read(tools).version("qemu-utils")

        def make(prefix: Path) -> None:
            packages = [f"qemu-block-extra={version}", "libblkio1"]
            Archive(cache, this_machine(), SUITES).exactly(packages, prefix)

        driver = cache.tree(f"libblkio/{SUITES.name}", make) / LIBRARIES
        libraries = ":".join(map(str, [tools / LIBRARIES, driver]))
        self.command = [str(tools / LOADER), "--library-path", libraries, str(tools / "usr/bin/qemu-io")]
        self.environment = {**os.environ, "QEMU_MODULE_DIR": str(driver / "qemu")}

    def run(self, socket: Path, *commands: str) -> str:
        """Run commands on the disk behind a socket; all must succeed."""
        options = f"driver=virtio-blk-vhost-user,path={socket},cache.direct=on"
        words = [word for command in commands for word in ("-c", command)]
        done = subprocess.run(
            [*self.command, "--image-opts", options, *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        assert "fail" not in done.stdout.lower(), done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def qemu_io() -> QemuIo:
    return QemuIo(Cache())


@pytest.mark.parametrize("plane", PLANES)
def test_requests_of_every_kind(qemu_io: QemuIo, tmp_path: Path, plane: str) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(random.Random(1).randbytes(8 * MIB))
    device = Block(image, queues=2)
    with Workers(2) as workers:
        with VhostUserServer(device, tmp_path / "s", workers=workers, plane=PLANES[plane]) as server:
            shown = qemu_io.run(
                server.path,
                *("write -P 0xab 1M 64k", "read -P 0xab 1M 64k", "flush", "discard 2M 1M", "read -P 0 2M 1M"),
                *("write -z 3M 64k", "read -P 0 3M 64k", "write -P 0xcd 8388096 512", "length"),
            )
            assert "8 MiB" in shown
            many = [f"aio_write -P {number} {number * 64}k 64k" for number in range(1, 65)]
            checks = [f"read -P {number} {number * 64}k 64k" for number in range(1, 65)]
            qemu_io.run(server.path, *many, "aio_flush", *checks)
            assert server.wait_idle(10)
            assert not sum(server.statistics.rejections.values())
            assert not device.error_count
    device.close()
    with image.open("rb") as file:
        for number in range(1, 65):
            file.seek(number * 64 << 10)
            assert file.read(64 << 10) == bytes([number]) * (64 << 10)
