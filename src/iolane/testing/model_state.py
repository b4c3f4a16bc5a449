"""Golden state files: what a released version saved must load for ever.

A device's tests keep one file of each `state_version` in a folder. The first is written by hand:

    write_golden(device_with_interesting_state, Path("tests/golden"))      # Nvme-v1.state

and a test says of all of them:

    for path in golden_files(Path("tests/golden"), Nvme):
        device = check_golden(make_nvme, path)

`missing_golden` names the versions that a class should have a file of and has not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from iolane.errors import IolaneError
from iolane.model.device import Device
from iolane.model.state import Saved, decode, encode

D = TypeVar("D", bound=Device)


def golden_path(folder: Path, kind: type[Device], version: int | None = None) -> Path:
    """Where the golden file of a version (by default the class's own) lies."""
    return folder / f"{kind.state_kind}-v{kind.state_version if version is None else version}.state"


def golden_files(folder: Path, kind: type[Device]) -> list[Path]:
    """The golden files of a class, oldest first."""
    found = [(version, golden_path(folder, kind, version)) for version in range(1, kind.state_version + 1)]
    return [path for _, path in found if path.exists()]


def missing_golden(folder: Path, kind: type[Device]) -> list[int]:
    """Versions that have no golden file."""
    return [
        version
        for version in range(1, kind.state_version + 1)
        if not golden_path(folder, kind, version).exists()
    ]


def write_golden(device: Device, folder: Path) -> Path:
    """Save a device as the golden file of its class's version. An existing one is never overwritten."""
    path = golden_path(folder, type(device))
    try:
        with path.open("xb") as file:
            file.write(device.save())
    except FileExistsError:
        raise IolaneError(
            f"{path} exists: a released version's state does not change",
            remedy=f"raise {type(device).__name__}.state_version and add an upgrade",
        ) from None
    return path


def check_golden(make: Callable[[], D], path: Path) -> D:
    """Load a golden file into a new device and give it back.

    What the device then saves must load again and, where the file has the class's own version, be the
    same document.
    """
    device = make()
    golden = path.read_bytes()
    device.load(golden)
    saved = device.save()
    again = make()
    again.load(saved)
    if encode(_nameless(decode(again.save()))) != encode(_nameless(decode(saved))):
        raise AssertionError(
            f"{path.name}: what the device saves after loading it does not load to the same state"
        )
    if decode(golden).version == device.state_version:
        differing = _differences(decode(golden), decode(saved))
        if differing:
            raise AssertionError(f"{path.name}: saved again, it differs in {', '.join(differing)}")
    return device


def _nameless(saved: Saved) -> Saved:
    saved.name = ""
    return saved


def _differences(golden: Saved, saved: Saved) -> list[str]:
    fields = [field for field in golden.__struct_fields__ if field != "name"]
    return [field for field in fields if getattr(golden, field) != getattr(saved, field)]
