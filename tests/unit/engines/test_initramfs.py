import io
import stat
import struct
import sys
from pathlib import Path

import pytest

from iolane.engines.qemu.cpio import CpioWriter
from iolane.engines.qemu.initramfs import elf_needs
from iolane.errors import IolaneError


def read_cpio(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """An independent reader of the newc format."""
    entries: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        assert data[at + 110 + name_size - 1] == 0
        start = (at + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            assert start == len(data)
            return entries
        entries[name] = (mode, data[start : start + size], (fields[9], fields[10]))
        at = (start + size + 3) & ~3


def test_every_kind_of_entry() -> None:
    out = io.BytesIO()
    cpio = CpioWriter(out)
    cpio.file("/a/b/c", b"12345", 0o755)
    cpio.directory("a/b")
    cpio.symlink("bin/sh", "/bin/busybox")
    cpio.character_device("dev/console", 5, 1)
    cpio.file("empty", b"")
    cpio.close()
    entries = read_cpio(out.getvalue())
    assert list(entries) == ["a", "a/b", "a/b/c", "bin", "bin/sh", "dev", "dev/console", "empty"]
    assert entries["a"][0] == stat.S_IFDIR | 0o755
    assert entries["a/b/c"] == (stat.S_IFREG | 0o755, b"12345", (0, 0))
    assert entries["bin/sh"][:2] == (stat.S_IFLNK | 0o777, b"/bin/busybox")
    assert entries["dev/console"] == (stat.S_IFCHR | 0o600, b"", (5, 1))


@pytest.mark.parametrize("path", ["../x", "a/../../b", ""])
def test_paths_that_leave_the_archive_are_refused(path: str) -> None:
    with pytest.raises(ValueError):
        CpioWriter(io.BytesIO()).file(path, b"")


def test_an_entry_is_written_once() -> None:
    cpio = CpioWriter(io.BytesIO())
    cpio.file("a", b"")
    assert "a" in cpio
    assert "/a" in cpio
    with pytest.raises(ValueError):
        cpio.file("/a", b"")


def test_what_a_program_needs() -> None:
    interpreter, needed = elf_needs(Path(sys.executable).resolve().read_bytes())
    assert interpreter == "/lib64/ld-linux-x86-64.so.2"
    assert "libc.so.6" in needed


@pytest.mark.parametrize(
    "data", [b"", b"#!/bin/sh\n", b"\x7fELF\x01" + bytes(100), struct.pack("<5s", b"MZ")]
)
def test_what_is_no_program_is_refused(data: bytes) -> None:
    with pytest.raises(IolaneError):
        elf_needs(data)
