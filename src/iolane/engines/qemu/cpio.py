"""The newc cpio format (Documentation/driver-api/early-userspace/buffer-format.rst of the Linux kernel)."""

from __future__ import annotations

import stat
from typing import BinaryIO

_TRAILER = "TRAILER!!!"


class CpioWriter:
    """Writes entries to a binary file; parents are made as needed; a path written twice is an error."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._written: set[str] = set()
        self._inode = 0

    def directory(self, path: str, mode: int = 0o755) -> None:
        """A directory; one that is there already is left alone."""
        path = _clean(path)
        if path and path not in self._written:
            self._entry(path, stat.S_IFDIR | mode, b"")

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file."""
        self._entry(_clean(path), stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._entry(_clean(path), stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device node (needs no privilege: it is only an entry)."""
        self._entry(_clean(path), stat.S_IFCHR | mode, b"", (major, minor))

    def __contains__(self, path: str) -> bool:
        return _clean(path) in self._written

    def close(self) -> None:
        """Writes the trailer. The file stays open."""
        self._inode = -1
        self._write(_TRAILER, 0, b"", (0, 0))

    def _entry(self, path: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        if not path or path in self._written:
            raise ValueError(f"{path!r} is in the archive already")
        parent = path.rpartition("/")[0]
        if parent:
            self.directory(parent)
        self._written.add(path)
        self._write(path, mode, data, device)

    def _write(self, path: str, mode: int, data: bytes, device: tuple[int, int]) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        numbers = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % number for number in numbers)
        self._out.write(header + name + bytes(-(len(header) + len(name)) % 4))
        self._out.write(data)
        self._out.write(bytes(-len(data) % 4))


def _clean(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"{path!r} leaves the archive")
    return "/".join(parts)
