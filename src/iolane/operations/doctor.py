"""What this machine has and lacks for iolane: each finding with its reason and its remedy."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from iolane.errors import IolaneError


class Verdict(StrEnum):
    """How good a finding is."""

    GOOD = "good"
    NOTE = "note"
    """Works, but worse or later than it could."""
    MISSING = "missing"
    """Something iolane needs."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    subject: str
    verdict: Verdict
    detail: str
    remedy: str | None = None


OLDEST_PYTHON = (3, 11)
CACHE_SPACE = 2 << 30
"""Free bytes the cache wants: a QEMU, two guest kernels with modules and headers."""
OPEN_FILES = 4096
"""A device with 2048 vectors has as many eventfds, twice while they are replaced."""


def examine() -> list[Finding]:
    """Look at everything; a check that fails itself is a finding too."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings.extend(check())
        except IolaneError as error:
            subject = check.__name__.removeprefix("_").replace("_", " ")
            findings.append(Finding(subject, Verdict.MISSING, error.message, error.remedy))
    return findings


def _python() -> Iterator[Finding]:
    version = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < OLDEST_PYTHON:
        yield Finding("python", Verdict.MISSING, version, "use Python 3.11 or newer")
    else:
        yield Finding("python", Verdict.GOOD, version)


def _machine() -> Iterator[Finding]:
    kernel = f"{platform.system()} {platform.release()} on {platform.machine()}, {os.cpu_count()} CPUs"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        yield Finding("machine", Verdict.MISSING, kernel, "guests need Linux on x86_64")
    else:
        yield Finding("machine", Verdict.GOOD, kernel)


def _compiler() -> Iterator[Finding]:
    path = shutil.which("gcc") or shutil.which("cc")
    if path:
        yield Finding("gcc", Verdict.GOOD, path)
    else:
        remedy = "apt install gcc; needed to build from source, for `iolane bench` and for guest drivers"
        yield Finding("gcc", Verdict.NOTE, "no C compiler", remedy)


def _open_files() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{_limit(soft)} (hard limit {_limit(hard)})"
    enough = resource.RLIM_INFINITY in (soft, hard) or max(soft, hard) >= OPEN_FILES
    if enough:
        yield Finding("open files", Verdict.GOOD, detail)
    else:
        remedy = (
            f"ulimit -Hn {OPEN_FILES}, or LimitNOFILE= in the unit: each interrupt vector is a descriptor"
        )
        yield Finding("open files", Verdict.NOTE, detail, remedy)


def _locked_memory() -> Iterator[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    yield Finding("locked memory", Verdict.GOOD, f"{_limit(soft)} (only passthrough will need it)")


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _runtime_folder() -> Iterator[Finding]:
    from iolane.carriers.control import runtime_directory

    yield Finding("runtime folder", Verdict.GOOD, str(runtime_directory()))


def _disk_space() -> Iterator[Finding]:
    from iolane.engines.qemu.cache import cache_directory

    cache = cache_directory()
    existing = next(parent for parent in (cache, *cache.parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        remedy = "set IOLANE_CACHE to a folder you may write"
        yield Finding("cache", Verdict.MISSING, f"{cache} can't be written", remedy)
        return
    free = shutil.disk_usage(existing).free
    detail = f"{cache}, {free >> 30} GiB free"
    if free < CACHE_SPACE:
        yield Finding(
            "cache", Verdict.NOTE, detail, "2 GiB hold everything; IOLANE_CACHE names another folder"
        )
    else:
        yield Finding("cache", Verdict.GOOD, detail)


def _apt() -> Iterator[Finding]:
    lacking = [tool for tool in ("apt-get", "dpkg-deb", "gpgv") if shutil.which(tool) is None]
    if lacking:
        detail = f"no {', '.join(lacking)}: QEMU and guest kernels can't be fetched"
        remedy = (
            "on Debian: apt install apt dpkg gpgv; else give QEMU by IOLANE_QEMU and a kernel by --kernel"
        )
        yield Finding("apt", Verdict.NOTE, detail, remedy)
    else:
        yield Finding("apt", Verdict.GOOD, "fetches QEMU and guest kernels from the machine's own sources")
    keys = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if not keys.exists():
        remedy = "apt install debian-archive-keyring: signatures of what is fetched are verified with it"
        yield Finding("keyring", Verdict.NOTE, f"no {keys}", remedy)


CHECKS: list[Callable[[], Iterator[Finding]]] = [
    _python,
    _machine,
    _compiler,
    _apt,
    _disk_space,
    _runtime_folder,
    _open_files,
    _locked_memory,
]
