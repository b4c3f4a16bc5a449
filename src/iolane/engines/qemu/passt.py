"""passt from the machine, or unpacked from Debian's package into the cache: nothing is installed."""

from __future__ import annotations

from pathlib import Path

from iolane.backends.net.passt import find_passt
from iolane.engines.qemu.archive import Archive, own_suites
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.sources import this_machine
from iolane.errors import IolaneError


def obtain_passt(cache: Cache | None = None) -> Path:
    """The program; its package is fetched where the machine has none. It needs nothing but libc.

    To have back ends find it, put it into the environment as `IOLANE_PASST`.
    """
    try:
        return Path(find_passt())
    except IolaneError:
        pass
    machine = this_machine()
    chosen = cache or Cache()
    archive = Archive(chosen, machine, own_suites(machine))
    tree = chosen.tree(f"passt/{machine.codename}", lambda target: _unpack(archive, target))
    return tree / "usr/bin/passt"


def _unpack(archive: Archive, target: Path) -> None:
    archive.exactly(["passt"], target)
