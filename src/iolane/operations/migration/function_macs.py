"""The addresses of network functions, which net_failover in the guest goes by.

A virtual function's address is its physical function's to give. As long as it has one, the hardware hands it
all that comes for this address, also when nobody drives it: a stand-in on the same wire would hear nothing.
"""

from __future__ import annotations

import contextlib

from iolane.errors import IolaneError
from iolane.host.inventory import find_function
from iolane.host.network import interfaces
from iolane.host.sysfs import Host
from iolane.host.vf_mac import SetMac, set_mac
from iolane.model.pci import PcieId

NONE = "00:00:00:00:00:00"
"""Takes a virtual function's address away."""


class FunctionMacs:
    """Gives functions of this host addresses, and takes them away.

    Args:
        assign: sets a virtual function's address.
    """

    def __init__(self, host: Host | None = None, assign: SetMac = set_mac) -> None:
        self._host = host or Host()
        self._assign = assign

    def give(self, address: PcieId, mac: str) -> None:
        """Let the function have this address.

        Raises:
            IolaneError: its driver refuses, or it is no virtual function and has another.
        """
        if (place := self._place(address)) is not None:
            self._assign(*place, mac)
            return
        own = self._own(address)
        if own is not None and own != mac:
            raise IolaneError(
                f"{address} has the address {own}, its stand-in {mac}: the guest would not join them",
                remedy="give a virtual function, which can have any address",
            )

    def take(self, address: PcieId) -> None:
        """Let a virtual function have no address, so that its stand-in hears what comes for it. What the
        driver refuses stays: then the stand-in must be on another wire.
        """
        with contextlib.suppress(IolaneError):
            if (place := self._place(address)) is not None:
                self._assign(*place, NONE)

    def _place(self, address: PcieId) -> tuple[str, int] | None:
        """The physical function's interface, and the number of a virtual function; None for others."""
        physical = find_function(self._host, address).physical_function
        if physical is None:
            return None
        sriov = find_function(self._host, physical).sriov
        names = [each.name for each in interfaces(self._host) if each.function == physical]
        if sriov is None or not names:
            raise IolaneError(f"{physical} has no interface here, by which its functions get addresses")
        return names[0], sriov.virtual_functions.index(address)

    def _own(self, address: PcieId) -> str | None:
        """None where no driver tells."""
        for interface in interfaces(self._host):
            if interface.function == address:
                return (self._host.read(f"/sys/class/net/{interface.name}/address") or "").strip() or None
        return None
