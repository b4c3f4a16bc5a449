"""What a user writes to name a device: `nvme,image=disk.raw,id=disk0` or `adder.py:Adder,process=own`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from iolane.errors import IolaneError


class Carrier(StrEnum):
    """What may carry a device to a guest that another process runs."""

    VFIO_USER = "vfio-user"
    VHOST_USER = "vhost-user"


ENGINE_KEYS = {
    "id": "the device's name in this machine",
    "process": "own: the device gets a process of its own; shared (default): one for all devices",
    "socket": "the socket of a device that another process serves",
    "carrier": "vfio-user or vhost-user; by default vhost-user for block and net, else vfio-user",
    "state": "the file with the state in which the device was unplugged elsewhere, from which it goes on",
}
"""Keys that belong to whoever runs the device; everything else is an option of the device."""

IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}")


class DeviceSpecification(msgspec.Struct, frozen=True, kw_only=True):
    """One `--device` argument, taken apart but not yet resolved to a class."""

    text: str
    name: str
    """A registered name, `file.py:Class` or `package.module:Class`; empty for a device served elsewhere."""
    options: dict[str, list[str]] = {}
    """Options of the device, each with the values given for it (more than one only makes sense for lists)."""
    id: str | None = None
    own_process: bool = False
    socket: str | None = None
    carrier: Carrier | None = None
    """None: what the name says, see `iolane.devices.registry.carrier_of`."""
    state: str | None = None
    """The file that the device comes back from, see `PciDevice.bring_back`."""

    def device_text(self) -> str:
        """The device alone, as its own process is told to serve it."""
        return _joined([self.name, *self._options(), *self._state()])

    def whole_text(self) -> str:
        """The device with all that was said of it but the state it began with, as `parse` takes it."""
        engine = {
            "id": self.id,
            "process": "own" if self.own_process else None,
            "socket": self.socket,
            "carrier": None if self.carrier is None else self.carrier.value,
        }
        told = [f"{key}={value}" for key, value in engine.items() if value is not None]
        return _joined([*([self.name] if self.name else []), *self._options(), *told])

    def _options(self) -> list[str]:
        return [f"{name}={value}" for name, values in self.options.items() for value in values]

    def _state(self) -> list[str]:
        return [] if self.state is None else [f"state={self.state}"]


def _joined(parts: list[str]) -> str:
    return ",".join(part.replace(",", ",,") for part in parts)


def split_commas(text: str) -> list[str]:
    """Parts between single commas; a doubled comma stands for a comma, as in QEMU's own options.

    >>> split_commas("nvme,image=a,,b.raw")
    ['nvme', 'image=a,b.raw']
    """
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


def parse(text: str) -> DeviceSpecification:
    """Take `NAME[,key=value...]` apart; raises IolaneError in one line that quotes the argument."""
    parts = split_commas(text)
    name = "" if "=" in parts[0] and ":" not in parts[0].partition("=")[0] else parts.pop(0)
    options: dict[str, list[str]] = {}
    engine: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise IolaneError(f"device '{text}': '{part}' is not key=value")
        if key not in ENGINE_KEYS:
            options.setdefault(key, []).append(value)
        elif key in engine:
            raise IolaneError(f"device '{text}': {key} is given twice")
        else:
            engine[key] = value
    _check(text, name, options, engine)
    return DeviceSpecification(
        text=text,
        name=name,
        options=options,
        id=engine.get("id"),
        own_process=engine.get("process") == "own",
        socket=engine.get("socket"),
        carrier=Carrier(engine["carrier"]) if "carrier" in engine else None,
        state=engine.get("state"),
    )


def _check(text: str, name: str, options: dict[str, list[str]], engine: dict[str, str]) -> None:
    if "id" in engine and not IDENTIFIER.fullmatch(engine["id"]):
        raise IolaneError(
            f"device '{text}': id '{engine['id']}' is not a name",
            remedy="a letter, then letters, digits, '_', '-' or '.'",
        )
    if engine.get("process", "own") not in ("own", "shared"):
        raise IolaneError(f"device '{text}': process is own or shared, not '{engine['process']}'")
    if engine.get("carrier", Carrier.VFIO_USER) not in tuple(Carrier):
        raise IolaneError(
            f"device '{text}': no carrier is called '{engine['carrier']}'",
            remedy=suggestion(engine["carrier"], Carrier),
        )
    if "socket" not in engine:
        if not name:
            raise IolaneError(
                f"device '{text}' has no name", remedy="NAME[,key=value...], e.g. nvme,image=disk.raw"
            )
        return
    if not engine["socket"]:
        raise IolaneError(f"device '{text}': socket needs a path")
    here = [*options, *(key for key in ("process", "state") if key in engine)]
    if here:
        given = ", ".join(here)
        raise IolaneError(
            f"device '{text}': {given} can't be given with socket=, the device is served elsewhere",
            remedy="give the options to its `iolane serve`",
        )
    if engine.get("carrier") == Carrier.VHOST_USER and not name:
        raise IolaneError(
            f"device '{text}': QEMU must know what kind of device a vhost-user socket is",
            remedy=f"write block,{text} or net,{text}",
        )


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """`did you mean X?` where one is near, otherwise all that are known."""
    names = sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"known: {', '.join(names)}" if names else "there are none"
