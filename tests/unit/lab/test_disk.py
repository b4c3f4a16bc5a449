"""The pattern of a fresh disk."""

from __future__ import annotations

from pathlib import Path

from iolane.lab.disk import PATTERN_BYTES, SECTOR, make_disk, pattern, pattern_sector


def test_each_sector_says_which_one_it_is(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    make_disk(disk, "nvme0", 1 << 30)
    assert disk.stat().st_size == 1 << 30
    assert disk.stat().st_blocks * 512 <= PATTERN_BYTES + (1 << 20)
    with disk.open("rb") as file:
        content = file.read(PATTERN_BYTES + SECTOR)
    assert content == pattern("nvme0", 1 << 30) + bytes(SECTOR)
    assert content[5 * SECTOR : 6 * SECTOR] == pattern_sector("nvme0", 5)
    assert pattern_sector("nvme0", 5).startswith(b"iolane lab nvme0 sector 00000005\n")


def test_a_disk_smaller_than_the_pattern() -> None:
    assert len(pattern("a", 1 << 20)) == 1 << 20
