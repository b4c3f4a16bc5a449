"""Network interfaces of the host: which functions carry them, and which the way out depends on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from iolane.host.function import last_address
from iolane.host.sysfs import Host
from iolane.model.pci.pcie_id import PcieId

INTERFACES = "/sys/class/net"
_DEEPEST = 8
_UP, _REJECT = 0x1, 0x200
"""RTF_UP, RTF_REJECT (include/uapi/linux/route.h)."""
_ANY = "0" * 32


@dataclass(frozen=True)
class Interface:
    """An interface with hardware behind it."""

    name: str
    function: PcieId


@dataclass(frozen=True)
class DefaultRoute:
    """An interface that carries a default route, itself or below others (bridge, bond, VLAN)."""

    interface: Interface
    above: str
    """The interface that the route names."""

    def __str__(self) -> str:
        below = "" if self.above == self.interface.name else f", below {self.above}"
        return f"{self.interface.name}{below}"


def interfaces(host: Host) -> list[Interface]:
    """Every interface behind a PCI function."""
    found = []
    for name in host.names(INTERFACES):
        real = host.real(f"{INTERFACES}/{name}")
        if real is not None and (function := last_address(real)) is not None:
            found.append(Interface(name, function))
    return found


def default_routes(host: Host) -> list[DefaultRoute]:
    """What default routes lead through hardware, IPv4 and IPv6."""
    hardware = {interface.name: interface for interface in interfaces(host)}
    found: dict[DefaultRoute, None] = {}
    for name in [*_routes_ipv4(host), *_routes_ipv6(host)]:
        for lowest in _lowest(host, name, _DEEPEST):
            if lowest in hardware:
                found[DefaultRoute(hardware[lowest], name)] = None
    return list(found)


def _routes_ipv4(host: Host) -> Iterator[str]:
    for line in (host.read("/proc/net/route") or "").splitlines()[1:]:
        words = line.split()
        if len(words) > 7 and words[1] == words[7] == "00000000" and _is_up(words[3]):
            yield words[0]


def _routes_ipv6(host: Host) -> Iterator[str]:
    for line in (host.read("/proc/net/ipv6_route") or "").splitlines():
        words = line.split()
        if len(words) == 10 and words[0] == _ANY and words[1] == "00" and _is_up(words[8]):
            yield words[9]


def _is_up(flags: str) -> bool:
    try:
        return int(flags, 16) & (_UP | _REJECT) == _UP
    except ValueError:
        return False


def _lowest(host: Host, name: str, depth: int) -> Iterator[str]:
    """The interfaces that `name` stands on, at last."""
    folder = f"{INTERFACES}/{name}"
    below = [each.removeprefix("lower_") for each in host.names(folder) if each.startswith("lower_")]
    below += host.names(f"{folder}/brif")
    if not below or depth == 0:
        yield name
    for each in dict.fromkeys(below):
        yield from _lowest(host, each, depth - 1)
