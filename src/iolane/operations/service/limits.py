"""What a device server may use of its host, and what may be seen of it: files, memory, modes, core dumps."""

from __future__ import annotations

import contextlib
import os
import re
import resource
from pathlib import Path

from iolane.errors import IolaneError

UMASK = 0o077
"""What it makes is for its user alone; sockets get their modes by themselves."""
NO_CORE = 1
"""RLIMIT_CORE. 0 would keep the kernel from writing a core file, but not from feeding one to a program that
core_pattern pipes it to (core(5)); 1 means neither (fs/coredump.c), and is too small for a file.
"""
PRIVATE_ONLY = 0x1 | 0x10
"""coredump_filter (core(5)): anonymous private memory and ELF headers. Guest memory is shared mappings (bits
1, 3, 6 and 8), which stay out even where somebody allows core dumps later.
"""
HEADROOM = 32 << 20
"""Bytes that a memory limit leaves at least for serving: stacks of threads, buffers of requests."""
_SIZE = re.compile(r"(\d{1,12})([KMGT])(?:i?B)?", re.IGNORECASE)
_POWERS = {"K": 10, "M": 20, "G": 30, "T": 40}
_STATUS = Path("/proc/self/status")


def keep_private() -> None:
    """No core dump of this process or its children, and what they write is for their user alone."""
    os.umask(UMASK)
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = NO_CORE if hard == resource.RLIM_INFINITY or hard >= NO_CORE else hard
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
    with contextlib.suppress(OSError):  # a kernel without CONFIG_ELF_CORE has no core dumps
        Path("/proc/self/coredump_filter").write_text(f"{PRIVATE_ONLY:#x}")


def limit_files(needed: int) -> str | None:
    """May open `needed` files and no more; what is missing, where the hard limit is below that."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if limit < needed:
        return f"{needed} open files may be needed, the limit is {hard} (ulimit -Hn {needed})"
    return None


def limit_memory(size: int) -> None:
    """May use `size` bytes of private memory; guest memory, which is shared, does not count.

    RLIMIT_DATA counts private writable mappings since Linux 4.7 (getrlimit(2)). RLIMIT_AS would count the
    guest's memory too, so it would limit the guest.

    Raises:
        IolaneError: it uses nearly as much already.
    """
    used = _kib("VmData") << 10
    if used + HEADROOM > size:
        least = -(-(used + HEADROOM) >> 20)
        raise IolaneError(
            f"a memory limit of {size >> 20} MiB is too little: {used >> 20} MiB are used before anything is"
            " served",
            remedy=f"at least {least + 1} MiB",
        )
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY and hard < size:
        raise IolaneError(
            f"a memory limit of {size >> 20} MiB is above the hard limit of this process, {hard >> 20} MiB",
            remedy="ulimit -d, or LimitDATA= in the unit",
        )
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def parse_size(text: str) -> int:
    """Bytes of `256M`, `1G` or `262144K`.

    >>> parse_size("2M")
    2097152
    """
    match = _SIZE.fullmatch(text)
    if match is None or not int(match[1]):
        raise IolaneError(f"'{text}' is not a size", remedy="a number with K, M, G or T, e.g. 256M")
    return int(match[1]) << _POWERS[match[2].upper()]


def _kib(name: str) -> int:
    """A line of /proc/self/status (proc(5)), in KiB."""
    for line in _STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise IolaneError(f"{_STATUS} has no {name}")
