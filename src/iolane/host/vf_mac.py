"""The MAC address of a virtual function, set on its physical function by netlink (IFLA_VF_MAC)."""

from __future__ import annotations

import re
from typing import Protocol

from iolane.errors import IolaneError

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_GROUP_ADDRESS = 1


class SetMac(Protocol):
    """Sets the address of virtual function `number` of the physical function with `interface`."""

    def __call__(self, interface: str, number: int, mac: str) -> None: ...


def checked_mac(text: str) -> str:
    """A unicast address in lower case.

    Raises:
        IolaneError: it is none.
    """
    mac = text.lower()
    if _MAC.fullmatch(mac) is None:
        raise IolaneError(f"{text!r} is not a MAC address", remedy="write it as 52:54:00:12:34:56")
    if int(mac[:2], 16) & _GROUP_ADDRESS or mac == "00:00:00:00:00:00":
        raise IolaneError(f"{text} can't be an interface's address", remedy="choose a unicast address")
    return mac


def set_mac(interface: str, number: int, mac: str) -> None:
    """Set it by netlink.

    Raises:
        IolaneError: the driver refused it.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as route:
        (index,) = route.link_lookup(ifname=interface)
        try:
            route.link("set", index=index, vf={"vf": number, "mac": mac})
        except NetlinkError as error:
            raise IolaneError(f"{interface}: virtual function {number} did not get {mac}: {error}") from error
