"""What this machine has and lacks for iolane: each finding with its reason and its remedy."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
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
        remedy = "apt install gcc make libc6-dev: the guest's agent and drivers are built with it"
        yield Finding("gcc", Verdict.MISSING, "no C compiler", remedy)
    if shutil.which("setpriv") is None:
        yield Finding(
            "setpriv", Verdict.MISSING, "QEMU is tied to iolane's life with it", "apt install util-linux"
        )


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


def _qemu() -> Iterator[Finding]:
    from iolane.engines.qemu.cache import Cache
    from iolane.engines.qemu.probe import choose_accelerator
    from iolane.engines.qemu.provision import cached_qemu, find_qemu

    cache = Cache()
    qemu = find_qemu() or cached_qemu(cache)
    if qemu is None:
        detail = "none with vfio-user (10.1 or newer) here; the first run fetches one (40 MB) into the cache"
        yield Finding("qemu", Verdict.NOTE, detail, "or set IOLANE_QEMU to a qemu-system-x86_64 of yours")
        yield _kvm_node()
        return
    yield Finding("qemu", Verdict.GOOD, f"{qemu.version}, {qemu.origin} ({_binary(qemu.command)})")
    accelerator, reason = choose_accelerator(qemu, cache)
    reason = "".join(letter for letter in reason.partition(";")[0] if letter.isprintable())
    if accelerator == "kvm":
        yield Finding("kvm", Verdict.GOOD, reason)
    else:
        yield Finding("kvm", Verdict.NOTE, f"{reason}; guests run under TCG", KVM_REMEDY)


def _binary(command: Sequence[str]) -> str:
    """The QEMU in a command that may start it through a loader."""
    return next((word for word in command if Path(word).name.startswith("qemu")), command[0])


KVM_REMEDY = "TCG is enough for everything but speed; KVM wants VT-x or SVM and access to /dev/kvm"


def _kvm_node() -> Finding:
    node = Path("/dev/kvm")
    if not os.access(node, os.R_OK | os.W_OK):
        why = "may not be opened" if node.exists() else "is not there"
        return Finding("kvm", Verdict.NOTE, f"{node} {why}; guests run under TCG", KVM_REMEDY)
    return Finding("kvm", Verdict.NOTE, f"{node} can be opened; the first run tries whether it runs Linux")


def _kernels() -> Iterator[Finding]:
    from iolane.engines.qemu.cache import cache_directory
    from iolane.engines.qemu.kernel import Flavour, unpacked_kernel

    folder = cache_directory() / "kernel"
    found = [
        f"{flavour} {unpacked_kernel(folder / flavour).release}"
        for flavour in Flavour
        if (folder / flavour).exists()
    ]
    if found:
        yield Finding("guest kernels", Verdict.GOOD, f"in the cache: {', '.join(found)}")
    else:
        detail = "none in the cache; the first run fetches one (30 MB)"
        yield Finding("guest kernels", Verdict.NOTE, detail, "or give one of yours by --kernel")


CHECKS: list[Callable[[], Iterator[Finding]]] = [
    _python,
    _machine,
    _compiler,
    _apt,
    _qemu,
    _kernels,
    _disk_space,
    _runtime_folder,
    _open_files,
    _locked_memory,
]
