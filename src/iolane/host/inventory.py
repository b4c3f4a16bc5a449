"""All PCI functions of the host."""

from __future__ import annotations

from iolane.errors import IolaneError
from iolane.host.function import DEVICES, HostFunction, read_function
from iolane.host.sysfs import Host
from iolane.model.pci.pcie_id import PcieId


def addresses(host: Host) -> list[PcieId]:
    """Where there are functions, sorted."""
    found = []
    for name in host.names(DEVICES):
        try:
            found.append(PcieId.from_string(name))
        except IolaneError:  # not an address: nothing the PCI bus itself makes
            continue
    return sorted(found)


def functions(host: Host) -> list[HostFunction]:
    """Every function, by address; one that vanishes meanwhile is left out."""
    return [function for address in addresses(host) if (function := read_function(host, address)) is not None]


def find_function(host: Host, address: PcieId) -> HostFunction:
    """The function at `address`.

    Raises:
        IolaneError: there is none.
    """
    function = read_function(host, address)
    if function is not None:
        return function
    near = [str(other) for other in addresses(host) if other[1:3] == address[1:3]]
    remedy = f"in that slot: {', '.join(near)}" if near else "`iolane host` lists the functions"
    raise IolaneError(f"there is no PCI function {address}", remedy=remedy)
