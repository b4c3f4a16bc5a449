"""DPDK's testpmd from Debian's packages, unpacked into the cache: a peer of ours, and a front end of others.

Nothing is installed, and nothing of it is needed to use iolane. It runs without huge pages and without
touching a device of the machine.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from iolane.engines.qemu.archive import Archive, Manifest, own_suites
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.sources import this_machine
from iolane.errors import IolaneError

PACKAGE = "dpdk-dev"
"""It holds testpmd, and depends on more than testpmd needs: on headers, static libraries and Python."""
NOT_NEEDED = ("libdpdk-dev", "python3")
DRIVERS = ("bus_vdev", "mempool_ring", "net_vhost", "net_virtio")
"""The plugins of DPDK that are loaded, and no other."""
MEMORY_MB = 256
MBUFS = 16384


@dataclass(frozen=True)
class Dpdk:
    """An unpacked DPDK."""

    prefix: Path
    version: str

    def testpmd(self, vdev: str, *options: str, cpus: tuple[int, int]) -> list[str]:
        """The command line of a testpmd with one virtual device, interactive.

        Args:
            vdev: the device, by DPDK's words: `net_virtio_user0,path=SOCKET,server=0`.
            options: testpmd's own.
            cpus: where its main thread, which only reads commands, and its busy one run; may be the same.
        """
        root = self.prefix / "libraries"
        folders = (root / "usr/lib/x86_64-linux-gnu", root / "lib/x86_64-linux-gnu")
        loader = next(file for folder in folders for file in folder.glob("ld-linux-x86-64.so.2"))
        command = [str(loader), "--library-path", ":".join(map(str, folders))]
        command.append(str(self.prefix / "program/usr/bin/dpdk-testpmd"))
        command += [f"--lcores=0@{cpus[0]},1@{cpus[1]}", "--no-huge", "-m", str(MEMORY_MB), "--no-pci"]
        command += ["--no-telemetry", "--file-prefix=iolane"]
        for driver in DRIVERS:
            command += ["-d", str(next(folders[0].glob(f"dpdk/pmds-*/librte_{driver}.so.*")))]
        return [*command, "--vdev", vdev, "--", "-i", f"--total-num-mbufs={MBUFS}", *options]


def obtain_dpdk(cache: Cache | None = None) -> Dpdk:
    """The DPDK of the machine's own Debian release, fetched if no earlier run did.

    Raises:
        IolaneError: it can't be had here.
    """
    if os.uname().machine != "x86_64":
        raise IolaneError(f"testpmd is fetched for x86_64 only, this machine is {os.uname().machine}")
    chosen, machine = cache or Cache(), this_machine()
    archive = Archive(chosen, machine, own_suites(machine))
    prefix = chosen.tree(f"dpdk/{machine.codename}", lambda target: _unpack(archive, target))
    version = Manifest.read(prefix / "program").version(PACKAGE)
    assert version is not None
    check_folder(chosen.root)
    return Dpdk(prefix, version)


def check_folder(root: Path) -> None:
    """DPDK loads no driver from below a folder that everybody may write (`eal_plugins_init`)."""
    for folder in [root.absolute(), *root.absolute().parents]:
        if folder.exists() and folder.stat().st_mode & stat.S_IWOTH:
            raise IolaneError(
                f"DPDK loads no drivers from {root}: everybody may write to {folder}",
                remedy="name another cache folder by IOLANE_CACHE",
            )


def _unpack(archive: Archive, prefix: Path) -> None:
    archive.report("fetching DPDK's testpmd into the private cache (about 20 MB)")
    depends = archive.depends(PACKAGE)
    libraries = [name for name in depends if name not in NOT_NEEDED]
    suffix = next((found[1] for name in depends if (found := re.fullmatch(r"librte-eal(\d+)", name))), None)
    if suffix is None:
        raise IolaneError(f"{PACKAGE} of this Debian release does not say which DPDK it belongs to")
    libraries += [f"librte-{driver.replace('_', '-')}{suffix}" for driver in DRIVERS]
    archive.closure(sorted(set(libraries)), prefix / "libraries")
    archive.exactly([PACKAGE], prefix / "program")
    for unused in ("libraries/usr/share", "program/usr/share", "program/usr/include"):
        shutil.rmtree(prefix / unused, ignore_errors=True)
