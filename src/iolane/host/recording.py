"""A host in one file: what the inventory reads of sysfs and procfs, without serial numbers and addresses.

The file is JSON: a tree of folders. A member is a folder if its value is an object, a file if it is text;
`NAME@` is a symbolic link, `NAME#` a file of bytes: its size, then `OFFSET:HEX` for each run of 16 that is
not zero.

Left out or replaced: serial numbers, MAC and IP addresses, UUIDs, mount points of one's own, kernel
parameters that have nothing to do with devices.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from iolane.errors import IolaneError
from iolane.host.recorded_files import recorded_files
from iolane.host.sysfs import Host

FORMAT = "iolane host 1"
_RUN = 16
_LARGEST_FILE, _LARGEST_CONTENT = 64 << 20, 1 << 20
Tree = dict[str, Any]


class Recording(msgspec.Struct, frozen=True):
    """One host."""

    format: str
    about: str
    """What machine this is, in words."""
    tree: Tree


def record(host: Host, about: str) -> Recording:
    """Read a host."""
    tree: Tree = {}
    for path, content in recorded_files(host):
        _put(tree, path, content)
    return Recording(FORMAT, about, tree)


def save(recording: Recording, path: Path) -> None:
    """Write a recording to a file that must not exist yet, or be one's own to replace."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(recording), indent=1) + b"\n")


def load(path: Path) -> Recording:
    """Read a recording.

    Raises:
        IolaneError: it is none.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise IolaneError(f"{path} is larger than a recorded host can be")
        recording = msgspec.json.decode(path.read_bytes(), type=Recording)
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise IolaneError(f"{path} is not a recorded host: {error}") from error
    if recording.format != FORMAT:
        raise IolaneError(
            f"{path} has the format {recording.format!r}", remedy=f"this iolane reads {FORMAT!r}"
        )
    return recording


def expand(recording: Recording, folder: Path) -> Host:
    """Make files of a recording in an empty folder. Others may have written it: nothing gets out of there.

    Raises:
        IolaneError: a name or a link in it is not one of a recorded host.
    """
    root = folder.resolve()
    links: list[tuple[Path, str]] = []
    _expand(recording.tree, root, links)
    for path, target in links:  # last, so that nothing is written through one
        _link(path, target, root)
    return Host(folder)


def _put(tree: Tree, path: str, content: str | bytes | PurePosixPath | None) -> None:
    """A file's text, its bytes, a link's target on the machine, or None for a folder."""
    *folders, name = path.strip("/").split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    if content is None:
        tree.setdefault(name, {})
    elif isinstance(content, PurePosixPath):
        tree[f"{name}@"] = os.path.relpath(content, os.path.dirname("/" + path.strip("/")))
    elif isinstance(content, bytes):
        tree[f"{name}#"] = _sparse(content)
    else:
        tree[name] = content


def _sparse(content: bytes) -> str:
    starts = range(0, len(content), _RUN)
    runs = [f"{at:x}:{content[at : at + _RUN].hex()}" for at in starts if any(content[at : at + _RUN])]
    return " ".join([str(len(content)), *runs])


def _dense(text: str) -> bytes:
    size, *runs = text.split()
    content = bytearray(min(int(size), _LARGEST_CONTENT))
    for run in runs:
        at, _, data = run.partition(":")
        piece = bytes.fromhex(data)
        start = int(at, 16)
        if start + len(piece) > len(content):
            raise ValueError("beyond the end")
        content[start : start + len(piece)] = piece
    return bytes(content)


def _expand(tree: Tree, folder: Path, links: list[tuple[Path, str]]) -> None:
    for marked, value in tree.items():
        name = marked.rstrip("@#")
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise IolaneError(f"{marked!r} is not a name in a recorded host")
        path = folder / name
        if isinstance(value, dict):
            path.mkdir()
            _expand(value, path, links)
        elif not isinstance(value, str):
            raise IolaneError(f"{name!r} in the recorded host is neither text nor a folder")
        elif marked.endswith("@"):
            links.append((path, value))
        elif marked.endswith("#"):
            try:
                path.write_bytes(_dense(value))
            except ValueError as error:
                raise IolaneError(f"{name!r} in the recorded host: {error}") from error
        else:
            path.write_text(value)


def _link(path: Path, target: str, root: Path) -> None:
    """First up, then down: `..` behind a name could lead out by way of another link."""
    parts = target.split("/")
    names = parts[next((n for n, part in enumerate(parts) if part != ".."), len(parts)) :]
    aim = Path(os.path.normpath(path.parent / target))
    if os.path.isabs(target) or ".." in names or not aim.is_relative_to(root):
        raise IolaneError(f"{path.relative_to(root)}: the link leads out of the recorded host")
    try:
        path.symlink_to(target)
    except OSError as error:
        raise IolaneError(f"{path.relative_to(root)}: {error.strerror}") from error
