"""Block devices of the host: which are in use, and through which PCI functions they are reached."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from iolane.host.function import last_address
from iolane.host.sysfs import Host
from iolane.model.pci.pcie_id import PcieId

BLOCK = "/sys/class/block"
_DEEPEST = 16
"""Layers of partitions, dm and md that are followed."""
_CONTROLLER = re.compile(r"nvme\d+")
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class DiskUse:
    """A disk behind a function, and what uses it: `nvme0n1 is mounted at / (through nvme0n1p2, vg-root)`."""

    function: PcieId
    disk: str
    use: str
    layers: tuple[str, ...]
    """From the disk up to what is used, less the disk itself."""

    def __str__(self) -> str:
        through = f" (through {', '.join(self.layers)})" if self.layers else ""
        return f"{self.disk} {self.use}{through}"


def disk_uses(host: Host) -> list[DiskUse]:
    """Every use of a disk that lies behind a PCI function."""
    found: dict[DiskUse, None] = {}
    used = [*_mounted(host), *_swapped(host)]
    used += [(name, use) for name, use in _held(host) if name not in dict(used)]
    for name, use in used:
        for function, disk, layers in _paths(host, name, (), _DEEPEST):
            found[DiskUse(function, disk, use, layers)] = None
    return list(found)


def disks(host: Host, function: PcieId) -> list[str]:
    """Whole disks that are reached through a function alone or among others."""
    return [
        name
        for name in host.names(BLOCK)
        if not host.exists(f"{BLOCK}/{name}/partition")
        and any(each == function and not layers for each, _, layers in _paths(host, name, (), _DEEPEST))
    ]


def is_claimed(host: Host, disk: str) -> bool:
    """Whether the kernel has given the disk to somebody exclusively: mounts, swap, dm, md, ZFS, bcache ...

    Finds what sysfs doesn't show. Only on the machine we run on, and only for root; False otherwise.
    """
    if not host.is_live:
        return False
    try:
        descriptor = os.open(host.path(f"/dev/{disk}"), os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        return error.errno == errno.EBUSY
    os.close(descriptor)
    return False


def _mounted(host: Host) -> Iterator[tuple[str, str]]:
    numbers = {host.read(f"{BLOCK}/{name}/dev"): name for name in host.names(BLOCK)}
    text = "\n".join(host.read(f"/proc/{process}/mountinfo") or "" for process in ("1", "self"))
    for line in dict.fromkeys(text.splitlines()):
        words = line.split()
        if "-" not in words or len(words) < words.index("-") + 3:
            continue
        number, point = words[2], _unescape(words[4])
        kind, source = words[words.index("-") + 1], _unescape(words[words.index("-") + 2])
        name = numbers.get(number) or _named(host, source)
        if name is not None:
            use = "holds the host's root file system" if point == "/" else f"is mounted at {point}"
            for each in _siblings(host, name) if kind == "btrfs" else [name]:
                yield each, use


def _swapped(host: Host) -> Iterator[tuple[str, str]]:
    """Swap files lie on file systems that are mounted anyway."""
    for line in (host.read("/proc/swaps") or "").splitlines()[1:]:
        if line.split() and (name := _named(host, _unescape(line.split()[0]))) is not None:
            yield name, "is swap"


def _held(host: Host) -> Iterator[tuple[str, str]]:
    """What dm, md or bcache made of a device is in use even when nobody has mounted it."""
    for name in host.names(BLOCK):
        for holder in host.names(f"{BLOCK}/{name}/holders"):
            if not host.names(f"{BLOCK}/{holder}/holders"):
                yield holder, f"is part of {_shown(host, holder)}"


def _siblings(host: Host, name: str) -> list[str]:
    """All devices of the btrfs file system that `name` belongs to; mountinfo names one of them."""
    for system in host.names("/sys/fs/btrfs"):
        members = host.names(f"/sys/fs/btrfs/{system}/devices")
        if name in members:
            return members
    return [name]


def _named(host: Host, path: str) -> str | None:
    """The block device that a /dev path means."""
    if not path.startswith("/dev/"):
        return None
    name = path.removeprefix("/dev/").replace("/", "!")  # as sysfs spells names with slashes
    if name.startswith("mapper!"):
        wanted = name.removeprefix("mapper!")
        for each in host.names(BLOCK):
            if each.startswith("dm-") and host.read(f"{BLOCK}/{each}/dm/name") == wanted:
                return each
        return None
    if host.exists(f"{BLOCK}/{name}"):
        return name
    real = host.real(path)
    last = real.rsplit("/", 1)[-1] if real else ""
    return last if last and host.exists(f"{BLOCK}/{last}") else None


def _shown(host: Host, name: str) -> str:
    """A device's name; that of the mapping for dm."""
    return host.read(f"{BLOCK}/{name}/dm/name") or name


def _paths(
    host: Host, name: str, layers: tuple[str, ...], depth: int
) -> Iterator[tuple[PcieId, str, tuple[str, ...]]]:
    """Down from a block device: the functions that reach it, the disk there, and the layers above that."""
    real = host.real(f"{BLOCK}/{name}")
    if real is None or depth == 0:
        return
    below = host.names(f"{real}/slaves")
    if host.exists(f"{real}/partition"):
        below = [real.split("/")[-2]]
    if below:
        for each in below:
            yield from _paths(host, each, (_shown(host, name), *layers), depth - 1)
        return
    if "/nvme-subsystem/" in real:  # a disk with several controllers belongs to none of them (multipath)
        subsystem = real[: real.rindex("/")]
        controllers = [each for each in host.names(subsystem) if _CONTROLLER.fullmatch(each)]
        reals = [host.real(f"{subsystem}/{each}") for each in controllers]
    else:
        reals = [real]
    for path in reals:
        if path is not None and (function := last_address(path)) is not None:
            yield function, _shown(host, name), layers


def _unescape(text: str) -> str:
    """Blanks in mountinfo and swaps are octal (proc(5))."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
