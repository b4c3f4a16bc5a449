"""A device as the user wrote it, with its paths absolute: a daemon leaves the folder it was started in."""

from __future__ import annotations

from pathlib import Path

import msgspec

from iolane.devices.options import options_of
from iolane.devices.registry import carrier_of, resolve, resolve_virtio
from iolane.devices.specification import Carrier, DeviceSpecification

BEFORE_A_PATH = ("listen:", "unix:", "file:", "pty:")
"""How streams and peers begin that are named by a path."""


def absolute(device: DeviceSpecification, folder: Path) -> DeviceSpecification:
    """The device's file, its options that are paths, and streams that have one, seen from `folder`."""
    resolved = resolve_virtio if carrier_of(device) is Carrier.VHOST_USER else resolve
    paths = {option.name for option in options_of(resolved(device.name)) if option.kind.startswith("path")}
    options = {
        name: [_value(text, folder, name.replace("-", "_") in paths) for text in values]
        for name, values in device.options.items()
    }
    where, colon, name = device.name.rpartition(":")
    if where.endswith(".py") or "/" in where:
        where = str(folder / Path(where).expanduser())
    state = None if device.state is None else str(folder / device.state)
    return msgspec.structs.replace(device, name=f"{where}{colon}{name}", options=options, state=state)


def descriptors(device: DeviceSpecification) -> set[int]:
    """The descriptors that the device is given by number, `fd:N[:M]`."""
    found: set[int] = set()
    for values in device.options.values():
        for text in values:
            if text.startswith("fd:"):
                found |= {int(part) for part in text.split(":")[1:] if part.isdecimal()}
    return found


def _value(text: str, folder: Path, is_path: bool) -> str:
    if is_path:
        return str(folder / text) if text else text
    for start in BEFORE_A_PATH:
        if text.startswith(start) and len(text) > len(start):
            return f"{start}{folder / text.removeprefix(start)}"
    return text


def text_of(device: DeviceSpecification) -> str:
    """The device as a user would write it, with its id and its carrier."""
    more = [f"id={device.id}"] if device.id else []
    more += [f"carrier={device.carrier}"] if device.carrier is not None else []
    return ",".join([device.device_text(), *more])
