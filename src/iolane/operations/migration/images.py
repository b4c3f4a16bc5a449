"""Disk images in a move: both sides mean the same one, and only one of them writes it."""

from __future__ import annotations

import os
from pathlib import Path

from iolane.backends.file import FileBackend
from iolane.backends.lock import ImageLock
from iolane.errors import IolaneError
from iolane.operations.migration.offer import Finding, OfferedImage


def offered_image(path: Path, *, read_only: bool, locked: bool | None) -> OfferedImage:
    """What the source tells of an image. Raises IolaneError where it can't be looked at.

    Args:
        locked: whether a device of this process holds its lock; None: another process would, so try.
    """
    try:
        inode = path.stat().st_ino
    except OSError as error:
        raise IolaneError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    return OfferedImage(
        size=_size(path),
        read_only=read_only,
        locked=_in_use(path, read_only=read_only) if locked is None else locked,
        inode=inode,
    )


def image_findings(name: str, path: Path, offered: OfferedImage) -> list[Finding]:
    """What keeps the destination from using `path` for a disk that moves here."""
    way_out = f"--device {name}=... names the image as it is called here"
    try:
        size, inode = _size(path, read_only=offered.read_only), os.stat(path).st_ino
    except (IolaneError, OSError) as error:
        return [Finding(f"disk {name}: {error}", f"share the image with this host; {way_out}")]
    if size != offered.size:
        return [Finding(f"disk {name}: {path} has {size} bytes here, {offered.size} at the source", way_out)]
    if offered.read_only:
        return []
    in_use = _in_use(path, read_only=False)
    if offered.locked and not in_use:
        return [
            Finding(
                f"disk {name}: {path} is another image here, or this file system does not share locks: the "
                "source holds its lock, and it is free here",
                way_out,
            )
        ]
    if not offered.locked and in_use:
        return [Finding(f"disk {name}: {path} is in use by another program here", "stop that program")]
    if not offered.locked and inode != offered.inode:
        return [Finding(f"disk {name}: {path} is another file here (a copy?)", way_out)]
    return []


def _size(path: Path, *, read_only: bool = True) -> int:
    backend = FileBackend(path, read_only=read_only, lock=False)
    try:
        return backend.size
    finally:
        backend.close()


def _in_use(path: Path, *, read_only: bool) -> bool:
    lock = ImageLock(path, exclusive=not read_only)
    try:
        lock.acquire()
    except IolaneError:
        return True
    lock.release()
    return False
