"""A network namespace of our own, for tests with real interfaces: nobody else sees them."""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from pyroute2 import IPRoute

from iolane.errors import IolaneError
from iolane.uapi.tun import IFREQ, TUNSETIFF, TUNSETPERSIST, TunFlag

CLONE_NEWNET = 0x4000_0000
_HERE = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)


class NetworkNamespace:
    """While it is entered, this thread, and threads and processes that it starts, are in a new namespace.

    Raises:
        IolaneError: it needs privilege (CAP_SYS_ADMIN) that we have not.
    """

    def __init__(self) -> None:
        self._before = -1

    def __enter__(self) -> Self:
        self._before = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
        if _libc.unshare(CLONE_NEWNET):
            number = ctypes.get_errno()
            os.close(self._before)
            raise IolaneError(
                f"a network namespace can't be made: {os.strerror(number).lower()}", remedy="run as root"
            )
        self.set_up("lo")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before, self._before = self._before, -1
        if _libc.setns(before, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(before)

    def set_up(
        self,
        interface: str,
        *,
        address: str | None = None,
        prefix: int = 24,
        vlans: Sequence[int] = (),
        mtu: int | None = None,
    ) -> None:
        """Give an interface an address and set it up; and VLANs on top of it, `NAME.VLAN`."""
        with IPRoute() as route:
            (index,) = route.link_lookup(ifname=interface)
            if mtu is not None:
                route.link("set", index=index, mtu=mtu)
            if address is not None:
                route.addr("add", index=index, address=address, prefixlen=prefix)
            route.link("set", index=index, state="up")
            for vlan in vlans:
                route.link("add", ifname=f"{interface}.{vlan}", kind="vlan", link=index, vlan_id=vlan)

    def make_tap(self, interface: str, *, queues: bool = False) -> None:
        """A tap that stays, as `ip tuntap add` makes it."""
        flags = TunFlag.TAP | TunFlag.NO_PI | (TunFlag.MULTI_QUEUE if queues else 0)
        with open("/dev/net/tun", "r+b", buffering=0) as tun:
            fcntl.ioctl(tun, TUNSETIFF, IFREQ.pack(interface.encode(), flags))
            fcntl.ioctl(tun, TUNSETPERSIST, 1)

    def add_default_route(self, gateway: str) -> None:
        """The way to everything else."""
        with IPRoute() as route:
            route.route("add", dst="default", gateway=gateway)

    def delete(self, interface: str) -> None:
        """Take an interface away."""
        with IPRoute() as route:
            (index,) = route.link_lookup(ifname=interface)
            route.link("del", index=index)
