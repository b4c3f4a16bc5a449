"""Debian's User Mode Linux kernel, unpacked into the cache."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

from iolane.engines.qemu.archive import Archive, own_suites
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.kernel import GuestKernel
from iolane.engines.qemu.sources import this_machine
from iolane.errors import IolaneError

PACKAGE = "user-mode-linux"
TREE = "uml/kernel"


def uml_kernel(cache: Cache | None = None) -> GuestKernel:
    """Debian's kernel of the release that the machine has, fetched if no earlier run did: a program."""
    cache = cache or Cache()
    prefix = cache.tree(TREE, lambda scratch: _fetch(cache, scratch))
    folder = next((prefix / "usr/lib/uml/modules").iterdir())
    return GuestKernel(prefix / "usr/bin/linux.uml", folder.name, folder, prefix / "config")


def _fetch(cache: Cache, prefix: Path) -> None:
    archive = this_machine()
    Archive(cache, archive, own_suites(archive)).exactly([PACKAGE], prefix)
    packed = prefix / "usr/share/doc" / PACKAGE / "config.gz"
    (prefix / "config").write_bytes(gzip.decompress(packed.read_bytes()))
    shutil.rmtree(prefix / "usr/share")
    folders = list((prefix / "usr/lib/uml/modules").iterdir())
    if len(folders) != 1 or not (prefix / "usr/bin/linux.uml").is_file():
        raise IolaneError(f"{PACKAGE} holds no kernel with its modules", remedy=f"remove {prefix}")
