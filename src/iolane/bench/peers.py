"""What iolane is measured beside: programs of Debian packages, each in a private tree of the cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from iolane.engines.qemu.archive import Archive, Manifest
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.provision import SUITES
from iolane.engines.qemu.sources import this_machine
from iolane.errors import IolaneError


@dataclass(frozen=True)
class Peer:
    """A program, and how to start it: by its own loader, with its own libraries."""

    command: tuple[str, ...]
    version: str


def storage_daemon(cache: Cache) -> Peer:
    """qemu-storage-daemon of the same suite, and so of the same version, as the QEMU that machines use."""
    return _peer(cache, "qemu-utils", "usr/bin/qemu-storage-daemon")


def fio(cache: Cache) -> Peer:
    """fio, for the machine's own limit."""
    return _peer(cache, "fio", "usr/bin/fio")


def _peer(cache: Cache, package: str, program: str) -> Peer:
    def make(prefix: Path) -> None:
        Archive(cache, this_machine(), SUITES).closure([package], prefix)

    prefix = cache.tree(f"{package}/{SUITES.name}", make)
    libraries = prefix / "usr/lib/x86_64-linux-gnu"
    if not (prefix / program).exists():
        raise IolaneError(f"the package {package} has no {program}")
    version = Manifest.read(prefix).version(package) or "?"
    folders = [libraries, *(folder for folder in sorted(libraries.iterdir()) if any(folder.glob("*.so.*")))]
    path = ":".join(map(str, folders))
    loader = (str(libraries / "ld-linux-x86-64.so.2"), "--library-path", path)
    return Peer((*loader, str(prefix / program)), version.removeprefix("1:").split("+")[0].split("-")[0])
