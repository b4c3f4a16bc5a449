"""Names of devices: `nvme`, an installed package's entry point, `file.py:Class`, `package.module:Class`."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import msgspec

from iolane.devices.options import Option, convert_options, options_of
from iolane.devices.source import load_file
from iolane.devices.specification import Carrier, DeviceSpecification, parse, suggestion
from iolane.errors import IolaneError
from iolane.model.pci import PciDevice
from iolane.model.virtio import VirtioDevice
from iolane.model.virtio.pci import VirtioPci

__all__ = [
    "Available",
    "available",
    "carrier_of",
    "create",
    "create_virtio",
    "names",
    "parse",
    "resolve",
    "resolve_virtio",
]

BUILT_IN = {
    "block": "iolane.devices.virtio.block:BlockFunction",
    "console": "iolane.devices.virtio.console:ConsoleFunction",
    "edu": "iolane.devices.edu:Edu",
    "net": "iolane.devices.virtio.net:NetFunction",
    "nvme": "iolane.devices.nvme:Nvme",
    "rng": "iolane.devices.virtio.rng:RngFunction",
    "serial": "iolane.devices.serial:PciSerial",
    "sriov": "iolane.devices.sriov:SharedAdder",
}
VIRTIO = {
    "block": "iolane.devices.virtio.block:Block",
    "console": "iolane.devices.virtio.console:Console",
    "net": "iolane.devices.virtio.net:BareNet",
    "rng": "iolane.devices.virtio.rng:Rng",
}
"""Names of virtio devices as they are without PCI: what vhost-user carries."""
BY_VHOST_USER = ("block", "net")
"""Names that vhost-user carries unless another carrier is asked for: QEMU has a front end that knows them."""
BASES = (PciDevice, VirtioDevice, VirtioPci)
DeviceClass = type[PciDevice] | type[VirtioDevice]
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


def carrier_of(specification: DeviceSpecification) -> Carrier:
    """The carrier that is asked for, else the one that the name has by default."""
    if specification.carrier is not None:
        return specification.carrier
    return Carrier.VHOST_USER if specification.name in BY_VHOST_USER else Carrier.VFIO_USER


def resolve(name: str) -> DeviceClass:
    """The device class of a name; raises IolaneError in one line when there is none."""
    return _resolve(name, names())


def resolve_virtio(name: str) -> type[VirtioDevice]:
    """The class of a virtio device without its PCI function; raises IolaneError in one line."""
    found = _resolve(name, names() | VIRTIO)
    if not issubclass(found, VirtioDevice):
        raise IolaneError(
            f"{name} is no virtio device: vhost-user can't carry it", remedy="leave carrier=vhost-user out"
        )
    return found


def _resolve(name: str, known: dict[str, str]) -> DeviceClass:
    target = known.get(name, name)
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
    """A new device as the specification says, known as `name` in traces; raises IolaneError in one line.

    A virtio device gets the PCI function around it.
    """
    wanted = parse(specification) if isinstance(specification, str) else specification
    kind = resolve(wanted.name)
    with _told_of(wanted):
        made = kind(**convert_options(kind, wanted.options))
        device = VirtioPci(made) if isinstance(made, VirtioDevice) else made
        device.name = device.dma.device = name or wanted.id or device.name
        if wanted.state is not None:
            _bring_back(device, Path(wanted.state))
    return device


def _bring_back(device: PciDevice, file: Path) -> None:
    try:
        device.bring_back(file.read_bytes())
    except BaseException:
        device.close()
        raise


def create_virtio(specification: DeviceSpecification | str, *, name: str | None = None) -> VirtioDevice:
    """The same for a virtio device without PCI."""
    wanted = parse(specification) if isinstance(specification, str) else specification
    kind = resolve_virtio(wanted.name)
    if "presentation" in wanted.options and wanted.name in VIRTIO:
        raise IolaneError(
            f"{wanted.name}: presentation= is for a PCI function of ours, with vhost-user it is QEMU's",
            remedy="add carrier=vfio-user",
        )
    if wanted.state is not None:
        raise IolaneError(
            f"{wanted.name}: state= is for a PCI function of ours, with vhost-user QEMU moves the state",
            remedy="add carrier=vfio-user, or leave state= out",
        )
    with _told_of(wanted):
        device = kind(**convert_options(kind, wanted.options))
    device.name = device.dma.device = name or wanted.id or device.name
    return device


@contextlib.contextmanager
def _told_of(wanted: DeviceSpecification) -> Iterator[None]:
    """What goes wrong while a device is made is one line that names it."""
    try:
        yield
    except IolaneError as error:
        raise IolaneError(f"{wanted.name}: {error.message}", remedy=error.remedy) from error
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        raise IolaneError(f"{wanted.name}: {named}{(error.strerror or str(error)).lower()}") from error
    except (TypeError, ValueError) as error:
        raise IolaneError(f"{wanted.name}: {error}") from error


def _device_class(namespace: dict[str, object], where: str, name: str) -> DeviceClass:
    found = namespace.get(name)
    if found is None:
        raise IolaneError(f"{where} has no class {name}", remedy=suggestion(name, _devices_in(namespace)))
    if not isinstance(found, type):
        raise IolaneError(f"{where}: {name} is not a class")
    if not issubclass(found, PciDevice | VirtioDevice):
        raise IolaneError(
            f"{where}: {name} is not a device: it does not derive from iolane's PciDevice or VirtioDevice"
        )
    if inspect.isabstract(found) or found in BASES:
        raise IolaneError(
            f"{where}: {name} is a base class, not a device", remedy="name the class derived from it"
        )
    return found


def _devices_in(namespace: dict[str, object]) -> list[str]:
    return [
        name
        for name, value in namespace.items()
        if isinstance(value, type) and issubclass(value, PciDevice | VirtioDevice) and value not in BASES
    ]


def _classes_hint(path: Path) -> str:
    try:
        found = _devices_in(vars(load_file(path)))
    except IolaneError as error:
        return f" ({error})"
    return f" It has {', '.join(found)}." if found else ""
