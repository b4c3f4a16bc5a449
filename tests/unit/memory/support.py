"""What the memory tests share."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = os.sysconf("SC_PAGESIZE")


@contextmanager
def memfd(pages: int) -> Iterator[int]:
    """A memory file of so many pages, each filled with its number + 1."""
    fd = os.memfd_create("iolane-test", os.MFD_CLOEXEC)
    try:
        os.write(fd, b"".join(bytes([n + 1]) * PAGE for n in range(pages)))
        yield fd
    finally:
        os.close(fd)


def areas() -> int:
    """How many of this process's areas belong to the tests' memory files."""
    gc.collect()  # a failed constructor lives on in its exception's traceback
    return Path("/proc/self/maps").read_text().count("iolane-test")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
