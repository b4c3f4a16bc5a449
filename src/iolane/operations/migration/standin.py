"""Whether a network function has a stand-in in the guest, over which connections go on without it."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import NamedTuple

from iolane.errors import IolaneError
from iolane.model.pci import PcieId
from iolane.operations.migration.disk_use import Guest

SCRIPT = "standin.sh"
TIMEOUT_S = 60.0
_LINE = re.compile(r"interface (\S+) ([0-9a-f:]{17})(?: (\S+) (\S+) ([01]))?")


class GuestInterface(NamedTuple):
    """A network interface of a function, as the guest has it."""

    name: str
    mac: str
    master: str | None = None
    """What the guest's programs use: net_failover's interface above it and its stand-in."""
    standin: str | None = None
    ready: bool = False
    """The stand-in is up, and has a link."""


def parse(output: str) -> list[GuestInterface]:
    """What the script printed. Raises IolaneError where that is something else."""
    found = []
    for line in output.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise IolaneError(
                f"the guest does not say what stands in for the function: '{line[:80]}'",
                remedy="unplug it by hand",
            )
        name, mac, master, standin, carrier = match.groups()
        found.append(GuestInterface(name, mac, master, standin, carrier == "1"))
    return found


def look(guest: Guest, function: PcieId) -> list[GuestInterface]:
    """The function's interfaces. Raises IolaneError: the guest gave no answer that could be understood."""
    script = files(__package__).joinpath(SCRIPT).read_text()
    answer = guest.run(f"set -- {function}\n{script}", timeout=TIMEOUT_S)
    if answer.exit_code:
        raise IolaneError(
            f"the guest does not say what stands in for the function: exit code {answer.exit_code}",
            remedy="unplug it by hand",
        )
    return parse(answer.output)


def require(name: str, interfaces: list[GuestInterface]) -> str:
    """The address of function `name`, whose every interface has a stand-in. Raises IolaneError."""
    if not interfaces:
        raise IolaneError(
            f"{name} can't be left behind: it has no network interface in the guest, and nothing stands in",
            remedy=f"unplug {name} first, and plug one in on the other side",
        )
    for interface in interfaces:
        if interface.standin is None:
            raise IolaneError(
                f"{name} ({interface.name}, {interface.mac}) has no stand-in in the guest",
                remedy=f"give the machine a device net,...,standby=on,mac={interface.mac}",
            )
        if not interface.ready:
            raise IolaneError(
                f"the stand-in of {name} ({interface.standin}) has no link in the guest",
                remedy=f"is {interface.master} up there, and the network of the stand-in?",
            )
    return interfaces[0].mac
