"""What the lab's initramfs does: modules, then this machine's files as the root, below a layer of memory."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from iolane.engines.qemu.initramfs import InitramfsContent

HOST_TAG, SHARE_TAG = "host", "share"
"""Mount tags of the two 9p file systems."""

SHARE = "/lab/share"
"""Where the shared folder is in the lab."""
TOOLS = "/lab/bin"
"""Where busybox and its applets are in the lab, for what this machine does not have installed."""
PACKAGE = "/package"
"""Where iolane itself is in the initramfs."""
READY = "/lab/ready"
"""Made last: the root is complete."""

MODULES = (
    "virtio_pci",
    "9p",
    "9pnet_virtio",
    "overlay",
    "vfio",
    "vfio_iommu_type1",
    "vfio-pci",
    "nvme",
    "igb",
    "igbvf",
    "e1000e",
    "ahci",
    "i2c-i801",
    "ext4",
    "crc32c_generic",
    "kvm-amd",
    "tun",
)

_MSIZE = 512_000
"""Bytes in a 9p message: the most that the virtio transport of Linux carries."""

SETUP = f"""
fail() {{ echo "iolane-lab: $*" >/dev/console; exit 1; }}
root=/iolane/root
p9=trans=virtio,version=9p2000.L,msize={_MSIZE}
mkdir -p /host /changes $root
mount -t 9p -o $p9,cache=loose,ro {HOST_TAG} /host || fail "this machine's files cannot be mounted"
mount -t tmpfs -o mode=755 changes /changes
mkdir /changes/files /changes/work
mount -t overlay -o lowerdir=/host,upperdir=/changes/files,workdir=/changes/work lab $root ||
    fail "no layer above this machine's files can be mounted"
cd $root
mkdir -p proc sys dev run tmp var/tmp .{TOOLS} .{SHARE} || fail "the root cannot be written"
for each in proc sys dev; do
    mount -o move /$each $root/$each || fail "/$each cannot be mounted"
done
mount -t tmpfs -o mode=755,nosuid,nodev run run
mkdir -p dev/shm run/lock run/user/0
chmod 1777 run/lock
mount -t tmpfs -o mode=1777,nosuid,nodev shm dev/shm
mount -t debugfs debugfs sys/kernel/debug
mount -t 9p -o $p9,cache=mmap {SHARE_TAG} .{SHARE} || fail "the shared folder cannot be mounted"
cp /bin/busybox .{TOOLS}/
chroot . {TOOLS}/busybox --install -s {TOOLS}
hostname lab
ifconfig lo up
"""
"""Ends before `READY`, which `content` adds."""


def content(package: Path, files: Mapping[str, Path], more: Sequence[str] = ()) -> InitramfsContent:
    """Of the lab's initramfs: `files` are those of the Python package at `package`; `more` are modules."""
    place = shlex.quote(f".{package}")
    layer = f'mount -o bind {PACKAGE} {place} || fail "iolane itself cannot be mounted"\n'
    return InitramfsContent(
        modules=[*MODULES, *more],
        files={f"{PACKAGE}/{name}": file for name, file in files.items()},
        setup=f"{SETUP}{layer}touch .{READY}\n",
    )
