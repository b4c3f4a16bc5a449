"""Names of devices: `nvme`, an installed package's entry point, `file.py:Class`, `package.module:Class`."""

from __future__ import annotations

import importlib
import inspect
import re
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import msgspec

from iolane.devices.options import Option, convert_options, options_of
from iolane.devices.source import load_file
from iolane.devices.specification import DeviceSpecification, parse, suggestion
from iolane.errors import IolaneError
from iolane.model.pci import PciDevice

__all__ = ["Available", "available", "create", "names", "parse", "resolve"]

BUILT_IN = {
    "block": "iolane.devices.virtio.block:BlockFunction",
    "console": "iolane.devices.virtio.console:ConsoleFunction",
    "edu": "iolane.devices.edu:Edu",
    "nvme": "iolane.devices.nvme:Nvme",
    "rng": "iolane.devices.virtio.rng:RngFunction",
    "serial": "iolane.devices.serial:PciSerial",
}
ENTRY_POINT_GROUP = "iolane.devices"
"""A package offers devices by `[project.entry-points."iolane.devices"]`, `name = "module:Class"`."""


class Available(msgspec.Struct, frozen=True):
    """A device that can be named, with what can be given to it."""

    name: str
    target: str
    summary: str
    options: list[Option]
    problem: str | None = None


def _offered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def names() -> dict[str, str]:
    """Every registered name with its `module:Class`; iolane's own win over those of other packages."""
    return {name: point.value for name, point in _offered().items()} | BUILT_IN


def available() -> list[Available]:
    """Describe every registered device; one that can't be imported says why."""
    found = []
    for name, target in sorted(names().items()):
        try:
            device = resolve(name)
        except IolaneError as error:
            found.append(Available(name, target, "", [], str(error)))
            continue
        summary = (inspect.getdoc(device) or "").partition("\n")[0]
        found.append(Available(name, target, summary, options_of(device)))
    return found


def resolve(name: str) -> type[PciDevice]:
    """The device class of a name; raises IolaneError in one line when there is none."""
    target = names().get(name, name)
    where, colon, class_name = target.rpartition(":")
    if not colon:
        if name.endswith(".py"):
            raise IolaneError(
                f"{name}: which class?{_classes_hint(Path(name))}", remedy=f"write {name}:CLASS"
            )
        raise IolaneError(f"no device is called '{name}'", remedy=suggestion(name, names()))
    if where.endswith(".py") or "/" in where:
        return _device_class(vars(load_file(Path(where).expanduser())), where, class_name)
    if not re.fullmatch(r"\w+(\.\w+)*", where):
        raise IolaneError(f"'{name}' is neither a device's name nor file.py:Class nor module:Class")
    try:
        module = importlib.import_module(where)
    except ImportError as error:
        raise IolaneError(f"device '{name}': {error}") from error
    except Exception as error:
        raise IolaneError(f"device '{name}': {where} fails: {type(error).__name__}: {error}") from error
    return _device_class(vars(module), where, class_name)


def create(specification: DeviceSpecification | str, *, name: str | None = None) -> PciDevice:
    """A new device as the specification says, known as `name` in traces; raises IolaneError in one line."""
    wanted = parse(specification) if isinstance(specification, str) else specification
    kind = resolve(wanted.name)
    try:
        device = kind(**convert_options(kind, wanted.options))
        device.name = device.dma.device = name or wanted.id or device.name
        return device
    except IolaneError as error:
        raise IolaneError(f"{wanted.name}: {error.message}", remedy=error.remedy) from error
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        raise IolaneError(f"{wanted.name}: {named}{(error.strerror or str(error)).lower()}") from error
    except (TypeError, ValueError) as error:
        raise IolaneError(f"{wanted.name}: {error}") from error


def _device_class(namespace: dict[str, object], where: str, name: str) -> type[PciDevice]:
    found = namespace.get(name)
    if found is None:
        raise IolaneError(f"{where} has no class {name}", remedy=suggestion(name, _devices_in(namespace)))
    if not isinstance(found, type):
        raise IolaneError(f"{where}: {name} is not a class")
    if not issubclass(found, PciDevice):
        raise IolaneError(f"{where}: {name} is not a device: it does not derive from iolane's PciDevice")
    if inspect.isabstract(found) or found is PciDevice:
        raise IolaneError(
            f"{where}: {name} is a base class, not a device", remedy="name the class derived from it"
        )
    return found


def _devices_in(namespace: dict[str, object]) -> list[str]:
    return [
        name
        for name, value in namespace.items()
        if isinstance(value, type) and issubclass(value, PciDevice) and value is not PciDevice
    ]


def _classes_hint(path: Path) -> str:
    try:
        found = _devices_in(vars(load_file(path)))
    except IolaneError as error:
        return f" ({error})"
    return f" It has {', '.join(found)}." if found else ""
