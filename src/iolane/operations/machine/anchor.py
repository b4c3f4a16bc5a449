"""Relative paths in a device's text, made absolute: who asks for a device may stand in another folder."""

from __future__ import annotations

from pathlib import Path

import msgspec

from iolane.devices.options import options_of
from iolane.devices.registry import resolve
from iolane.devices.specification import DeviceSpecification

PATH = "path"
"""The kind of options that are paths."""


def anchored(specification: DeviceSpecification, folder: Path | None) -> DeviceSpecification:
    """The same device with its file, its socket and every option that is a path made absolute.

    Raises:
        IolaneError: there is no such device.
    """
    base = Path.cwd() if folder is None else folder
    named = msgspec.structs.replace(
        specification,
        name=_file(specification.name, base),
        socket=None if specification.socket is None else _absolute(specification.socket, base),
        state=None if specification.state is None else _absolute(specification.state, base),
    )
    if not named.name or named.socket is not None:
        return named
    paths = {each.name for each in options_of(resolve(named.name)) if PATH in each.kind.split("|")}
    options = {
        key: [
            str(base / Path(value).expanduser()) if key.replace("-", "_") in paths else value
            for value in values
        ]
        for key, values in named.options.items()
    }
    return msgspec.structs.replace(named, options=options)


def _absolute(path: str, base: Path) -> str:
    return str(base / Path(path).expanduser())


def _file(name: str, base: Path) -> str:
    """FILE.py:CLASS with its file made absolute; other names as they are."""
    where, colon, kind = name.rpartition(":")
    if not colon or not (where.endswith(".py") or "/" in where):
        return name
    return f"{_absolute(where, base)}:{kind}"
