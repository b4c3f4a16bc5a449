"""What memory there is to spare."""

from __future__ import annotations

from pathlib import Path

from iolane.memory.available import available_memory


def test_the_kernel_says_it(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable: 50 kB\n")
    assert available_memory(meminfo) == 50 << 10


def test_an_old_kernel_says_what_is_free(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\n")
    assert available_memory(meminfo) > 0
