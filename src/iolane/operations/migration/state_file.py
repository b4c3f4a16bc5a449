"""The states of devices on their way, in files that outlive the process: nothing of them gets lost."""

from __future__ import annotations

import secrets
from pathlib import Path

from iolane.carriers.control import runtime_directory, write_private
from iolane.devices.specification import parse


def path_for(name: str) -> Path:
    """Where the state of a device may be kept: in the runtime folder, which is this user's alone."""
    return runtime_directory() / f"{name}-{secrets.token_hex(4)}.state"


def keep(name: str, state: bytes) -> Path:
    """Write a device's state to a new file. Raises IolaneError."""
    path = path_for(name)
    write_private(path, state)
    return path


def with_state(text: str, file: Path | None) -> str:
    """A device's text with `state=` of `file`, or without any."""
    bare = parse(text).whole_text()
    return bare if file is None else f"{bare},state={str(file).replace(',', ',,')}"
