"""What a fresh disk of the lab holds: a pattern that names each sector, so that any read can be judged."""

from __future__ import annotations

import os
from pathlib import Path

SECTOR = 512
PATTERN_BYTES = 4 << 20
"""Where the pattern ends; what is behind it is zero, and takes no room in the file."""


def pattern_sector(name: str, number: int) -> bytes:
    """The content of one sector of the disk `name`.

    >>> pattern_sector("nvme0", 3)[:32]
    b'iolane lab nvme0 sector 00000003'
    """
    line = f"iolane lab {name} sector {number:08d}\n".encode()
    return (line * (SECTOR // len(line) + 1))[:SECTOR]


def pattern(name: str, size: int) -> bytes:
    """What the fresh disk `name` of `size` bytes begins with; zeros follow."""
    return b"".join(pattern_sector(name, number) for number in range(min(size, PATTERN_BYTES) // SECTOR))


def make_disk(path: Path, name: str, size: int) -> None:
    """A sparse file of `size` bytes that begins with the pattern."""
    with path.open("wb") as file:
        file.write(pattern(name, size))
        os.ftruncate(file.fileno(), size)
