"""Finds a QEMU that speaks vfio-user (10.1 or newer), or obtains one into the cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from iolane.engines.qemu.archive import Archive, Suites
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.patience import patient
from iolane.engines.qemu.sources import this_machine
from iolane.errors import IolaneError

QEMU_VARIABLE = "IOLANE_QEMU"
SUITES = Suites(
    "trixie-backports",
    ("trixie", "trixie-updates", "trixie-backports"),
    ("trixie-security",),
    "trixie-backports",
)
TREE = "qemu/trixie-backports"
REMEDY = f"install qemu-system-x86 >= 10.1, or set {QEMU_VARIABLE} to such a qemu-system-x86_64"


@dataclass(frozen=True)
class Qemu:
    """A QEMU and how to start it."""

    command: tuple[str, ...]
    version: str
    origin: str
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def examine(
        cls, command: tuple[str, ...], origin: str, environment: dict[str, str] | None = None
    ) -> Qemu:
        """Asks the binary for its version and for the device vfio-user-pci; raises when it has none."""
        environment = environment or {}
        version = re.search(r"version (\d+(?:\.\d+)+)", _output(command, ["--version"], environment))
        if version is None:
            raise IolaneError(f"{command[0]} is not a QEMU", remedy=REMEDY)
        help_text = _output(command, ["-device", "vfio-user-pci,help"], environment)
        if "socket" not in help_text:
            raise IolaneError(f"{origin} QEMU {version[1]} has no vfio-user-pci", remedy=REMEDY)
        return cls(command, version[1], origin, environment)


def _output(command: tuple[str, ...], arguments: list[str], environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            timeout=patient(30),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise IolaneError(f"{command[0]} cannot be run: {error}", remedy=REMEDY) from error
    return done.stdout


def find_qemu() -> Qemu | None:
    """The QEMU named by IOLANE_QEMU (which must do), else the system's if it does."""
    if chosen := os.environ.get(QEMU_VARIABLE):
        return Qemu.examine((chosen,), f"{QEMU_VARIABLE}'s")
    system = shutil.which("qemu-system-x86_64")
    if system is None:
        return None
    try:
        return Qemu.examine((system,), "the system's")
    except IolaneError:
        return None


def cached_qemu(cache: Cache) -> Qemu | None:
    """The QEMU obtained by an earlier run, if there is one."""
    prefix = cache.root / TREE
    return _from_prefix(prefix) if prefix.exists() else None


def obtain_qemu(cache: Cache | None = None) -> Qemu:
    """A QEMU with vfio-user: the chosen one, the system's, the cached one, or one fetched now."""
    found = find_qemu()
    if found is not None:
        return found
    cache = cache or Cache()
    if (cached := cached_qemu(cache)) is not None:
        return cached

    def make(prefix: Path) -> None:
        cache.report("no QEMU with vfio-user here: fetching one into the private cache (about 40 MB)")
        Archive(cache, this_machine(), SUITES).closure(["qemu-system-x86"], prefix)
        for unused in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian"):
            shutil.rmtree(prefix / unused, ignore_errors=True)
        qemu = Qemu.examine(*_prefix_command(prefix))
        (prefix / "version").write_text(qemu.version)

    prefix = cache.tree(TREE, make)
    return _from_prefix(prefix)


def _from_prefix(prefix: Path) -> Qemu:
    command, origin, environment = _prefix_command(prefix)
    return Qemu(command, (prefix / "version").read_text(), origin, environment)


def _prefix_command(prefix: Path) -> tuple[tuple[str, ...], str, dict[str, str]]:
    """The prefix has its own C library, so it is started through the prefix's own loader. QEMU looks for its
    modules in QEMU_MODULE_DIR first, which keeps it from those of another QEMU installed in the system."""
    libraries = prefix / "usr/lib/x86_64-linux-gnu"
    command = (
        str(libraries / "ld-linux-x86-64.so.2"),
        "--library-path",
        str(libraries),
        str(prefix / "usr/bin/qemu-system-x86_64"),
        *("-L", str(prefix / "usr/share/qemu")),
        *("-L", str(prefix / "usr/share/seabios")),
    )
    return command, "the private", {"QEMU_MODULE_DIR": str(libraries / "qemu")}
