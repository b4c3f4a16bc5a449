"""libvirt for tests: used where it is installed, else Debian's packages unpacked into the cache.

The unpacked daemon finds its drivers, CPU models and helpers only in /usr, so a test's host is a mount
namespace in which what the machine lacks there is filled in (`host.py`). The binding is loaded into the
tests' own process.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from iolane.engines.qemu.archive import Archive, own_suites
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.initramfs import elf_needs
from iolane.engines.qemu.provision import SUITES
from iolane.engines.qemu.sources import machine_codename, this_machine
from iolane.errors import IolaneError

PACKAGES = ("libvirt-daemon", "libvirt-clients", "qemu-system-x86", "seabios")
LATER_PACKAGES = ("libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients", "qemu-system-x86")
LIBRARY_FOLDERS = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
PYTHONS = {"bookworm": (3, 11), "trixie": (3, 13)}
"""What Python python3-libvirt of a release is built for."""


@dataclass(frozen=True)
class Libvirt:
    """Where libvirt is."""

    tree: Path | None
    """None: installed."""
    binding: Path | None
    """A folder for PYTHONPATH; None: importable anyway."""
    later: bool = False
    """Of a later release than this machine's, with its own C library and QEMU."""


def obtain() -> Libvirt:
    """libvirt, with its binding importable in this process. Skips the test where that can't be."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: a libvirtd of our own needs root, for namespaces and mounts")
    cache = Cache()
    codename = machine_codename()
    if codename is None:
        pytest.skip("NOT TESTED: libvirt is unpacked from Debian's packages, and this is no Debian")
    try:
        machine = this_machine()
        archive = Archive(cache, machine, own_suites(machine))
        tree = None
        if shutil.which("libvirtd") is None:
            tree = cache.tree(f"libvirt-host/{codename}", lambda target: _closure(archive, target))
        binding = _binding(archive, cache, codename, tree)
    except IolaneError as error:
        pytest.skip(f"NOT TESTED: libvirt can't be had: {error}")
    return Libvirt(tree, binding)


def obtain_later(here: Libvirt) -> Libvirt:
    """The libvirt that belongs to the QEMU with vfio-user: an older one can't migrate that. Its daemon
    speaks with clients of any version.
    """
    cache = Cache()
    try:
        archive = Archive(cache, this_machine(), SUITES)
        tree = cache.tree(f"libvirt-host/{SUITES.name}", lambda target: _later(archive, target))
    except IolaneError as error:
        pytest.skip(f"NOT TESTED: a later libvirt can't be had: {error}")
    return Libvirt(tree, here.binding, later=True)


def _later(archive: Archive, target: Path) -> None:
    archive.closure(LATER_PACKAGES, target)


def _closure(archive: Archive, target: Path) -> None:
    archive.closure(PACKAGES, target)


def _python(archive: Archive, target: Path) -> None:
    archive.exactly(["python3-libvirt"], target)


def _binding(archive: Archive, cache: Cache, codename: str, tree: Path | None) -> Path | None:
    if importlib.util.find_spec("libvirt") is not None:
        return None
    if PYTHONS.get(codename) != sys.version_info[:2]:
        pytest.skip(
            f"NOT TESTED: python3-libvirt of {codename} is not for Python {sys.version_info[0]}."
            f"{sys.version_info[1]}; pip install libvirt-python"
        )
    unpacked = cache.tree(f"libvirt-python/{codename}", lambda target: _python(archive, target))
    if tree is not None:
        for library in ("libvirt.so.0", "libvirt-qemu.so.0"):
            _load(library, tree, set())
    modules = unpacked / "usr/lib/python3/dist-packages"
    sys.path.append(str(modules))
    return modules


def _load(library: str, tree: Path, seen: set[str]) -> None:
    """The system's library where there is one, else the tree's, with what it needs before it."""
    if library in seen:
        return
    seen.add(library)
    try:
        ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
        return
    except OSError:
        pass
    file = next(
        (tree / folder / library for folder in LIBRARY_FOLDERS if (tree / folder / library).exists()), None
    )
    if file is None:
        raise IolaneError(f"{tree} has no {library}")
    for needed in elf_needs(file.read_bytes())[1]:
        _load(needed, tree, seen)
    ctypes.CDLL(str(file), ctypes.RTLD_GLOBAL)
