"""Memory that the IOMMU reaches is locked, and how much a process may lock is limited (RLIMIT_MEMLOCK).

VFIO type 1 counts every page that is mapped, once for each container, against the limit of the process that
maps it, unless the process has CAP_IPC_LOCK (Documentation/driver-api/vfio.rst; vfio_lock_acct).
"""

from __future__ import annotations

import re
import resource
from dataclasses import dataclass
from pathlib import Path

CAP_IPC_LOCK = 14
STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class LockedMemory:
    """What this process has locked and may lock, in bytes; limits are None where there is none."""

    locked: int
    soft: int | None
    hard: int | None
    privileged: bool
    """CAP_IPC_LOCK: no limit holds."""

    def allows(self, size: int) -> bool:
        """Whether the limit leaves room for `size` bytes more."""
        return self.privileged or self.soft is None or self.locked + size <= self.soft

    def explain(self, size: int) -> str:
        """One line: what is locked, what is needed, what the limit is."""
        limit = "none" if self.soft is None else _words(self.soft)
        return (
            f"{_words(size)} of memory can't be locked for DMA: {_words(self.locked)} are locked already,"
            f" {_words(self.locked + size)} are needed, the limit (RLIMIT_MEMLOCK) is {limit}"
        )

    def remedy(self, size: int) -> str:
        """The way out."""
        if self.privileged or self.soft is None:
            return "no limit is in the way: the host is out of memory, or the pages can't be pinned"
        kib = -(-(self.locked + size) // 1024)
        return (
            f"raise it to at least {kib} KiB: `ulimit -l {kib}` in the shell that starts iolane,"
            f" LimitMEMLOCK={kib}K in its systemd unit, or memlock in /etc/security/limits.conf;"
            " or run it with CAP_IPC_LOCK"
        )


def locked_memory(status: Path = STATUS) -> LockedMemory:
    """The state of this process now."""
    text = status.read_text()
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return LockedMemory(
        locked=_number(text, r"^VmLck:\s*(\d+) kB$", 10) * 1024,
        soft=None if soft == resource.RLIM_INFINITY else soft,
        hard=None if hard == resource.RLIM_INFINITY else hard,
        privileged=bool(_number(text, r"^CapEff:\s*([0-9a-f]+)$", 16) >> CAP_IPC_LOCK & 1),
    )


def make_room(size: int) -> bool:
    """Raise the soft limit as far as the hard limit lets it, where `size` more bytes need that. True if the
    limit now allows them.
    """
    state = locked_memory()
    if state.allows(size):
        return True
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    return locked_memory().allows(size)


def _number(text: str, pattern: str, base: int) -> int:
    found = re.search(pattern, text, re.MULTILINE)
    return int(found[1], base) if found is not None else 0


def _words(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size / (1 << 20):.1f} MiB" if size >= 1 << 20 else f"{size} bytes"
