"""What compiled code may do of a disk by itself: plain reads and writes of a raw image."""

from __future__ import annotations

import os
from pathlib import Path

from iolane.backends.file import FileBackend
from iolane.memory.mapping import Mapping, MappingError
from iolane.memory.ring import BlockPath

_MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "hugetlbfs"})
_MAPPED, _CACHED, _DIRECT = 0, 1, 2


def block_path(backend: FileBackend, *, direct: bool, writes: bool) -> BlockPath:
    """The path for an image.

    Files that live in memory are read through a mapping, which never waits. Others are read from the page
    cache, and by io_uring where it has nothing; with `direct` always by io_uring, past the page cache.
    Writes go through the kernel: a full disk is an error there, and a signal in a mapping.

    Args:
        direct: past the page cache.
        writes: compiled code may write, too.
    """
    read_only = not writes or backend.read_only
    if direct:
        flags = (os.O_RDONLY if backend.read_only else os.O_RDWR) | os.O_DIRECT | os.O_CLOEXEC
        return BlockPath(
            os.open(f"/proc/self/fd/{backend.fileno()}", flags), backend.size, _DIRECT, read_only, own_fd=True
        )
    if _in_memory(backend.path):
        try:
            image = Mapping(backend.fileno(), backend.size, writable=False)
        except MappingError:
            return BlockPath(backend.fileno(), backend.size, _CACHED, read_only, keep=backend)
        return BlockPath(
            backend.fileno(),
            backend.size,
            _MAPPED,
            read_only,
            image.address,
            image.broken_address,
            keep=(image, backend),
        )
    return BlockPath(backend.fileno(), backend.size, _CACHED, read_only, keep=backend)


def _in_memory(path: Path) -> bool:
    """Whether the file system that holds `path` keeps it in memory."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1] in _MEMORY_FILE_SYSTEMS
    return False
