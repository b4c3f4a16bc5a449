"""A passed-through function, which can't move: it is unplugged, the machine moves on its stand-in, and a
function of the other host is plugged in there.

The stand-in is virtio-net with the standby feature (virtio 1.3, 5.1.3: VIRTIO_NET_F_STANDBY). The guest's
kernel (net_failover) joins it with the function that has the same address; connections go over whichever of
the two is there. On the source the function stays with vfio-pci until the machine has moved, so that it is
plugged in again at once when the machine stays.
"""

from __future__ import annotations

from collections.abc import Mapping

from iolane.errors import IolaneError
from iolane.host.inventory import find_function
from iolane.host.sysfs import Host
from iolane.host.verdict import Survey
from iolane.model.pci import PcieId
from iolane.operations.migration.function_macs import FunctionMacs
from iolane.operations.migration.machine_in_move import MachineInMove
from iolane.operations.migration.moved_device import Departed
from iolane.operations.migration.standin import look, require
from iolane.operations.passthrough import PassRequest

UNPLUG_S = 60.0
"""How long the guest may take to let go."""
NETWORK_CONTROLLER = 0x02
"""Base class code (PCI Code and ID Assignment, 1.3)."""


class FunctionDevice:
    """One passed function at the source.

    Args:
        machine: runs here.
        name: the function's id in it.
        port: the root port that it is behind.
        address: where the function is on this host.
        timeout: seconds for the guest to let go of it.
    """

    def __init__(
        self,
        machine: MachineInMove,
        name: str,
        port: str | None,
        address: PcieId,
        macs: FunctionMacs | None = None,
        *,
        timeout: float = UNPLUG_S,
    ) -> None:
        self.name = name
        self._machine = machine
        self._port = port
        self._address = address
        self._macs = macs or FunctionMacs()
        self._timeout = timeout
        self._mac: str | None = None

    def check(self) -> None:
        """Refuse a function that the engine can't unplug, or that nothing stands in for."""
        if (reason := self._machine.why_not_unplug(self.name)) is not None:
            raise IolaneError(f"{self.name} can't be taken out of the machine: {reason}")
        self._standin()

    def before(self) -> Departed:
        """Unplug it. It stays taken."""
        self._mac = self._standin()
        self._machine.take_out(self.name, self._timeout).require(self.name)
        self._macs.take(self._address)
        return Departed(name=self.name, port=self._port, mac=self._mac)

    def rollback(self) -> None:
        """Plug it in again."""
        assert self._mac is not None
        self._macs.give(self._address, self._mac)
        self._machine.put_back(self.name)

    def _standin(self) -> str:
        """The address that the guest's connections have."""
        return require(self.name, look(self._machine, self._machine.guest_address(self.name)))


class GivenFunctions:
    """Functions of the destination for machines that come: `--pass ADDRESS,id=NAME` for each NAME.

    Args:
        requests: what the operator gives, by id.
    """

    def __init__(
        self,
        requests: Mapping[str, PassRequest],
        host: Host | None = None,
        macs: FunctionMacs | None = None,
    ) -> None:
        self._requests = dict(requests)
        self._host = host or Host()
        self._macs = macs or FunctionMacs(self._host)

    def check(self, name: str, *, network: bool = True) -> None:
        """Whether there is a function for `name`, and it could be taken now. Raises IolaneError.

        Args:
            network: it is to join a stand-in, which only a network function does.
        """
        request = self._request(name)
        function = find_function(self._host, request.address)
        if network and function.base_class != NETWORK_CONTROLLER:
            raise IolaneError(f"{request.address}, which is for {name}, is no network function")
        Survey(self._host).verdict(request.address).require(force=request.force)

    def prepare(self, departed: Departed) -> str:
        """Give the function for `departed` its address; returns its text for `--pass`.

        Raises:
            IolaneError: there is none, or it can't have this address.
        """
        request = self._request(departed.name)
        if departed.mac is not None:
            self._macs.give(request.address, departed.mac)
        return request.text

    def _request(self, name: str) -> PassRequest:
        if name not in self._requests:
            raise IolaneError(
                f"there is no function for {name} here", remedy=f"iolane receive ... --pass ADDRESS,id={name}"
            )
        return self._requests[name]


def come_back(machine: MachineInMove, departed: Departed, given: GivenFunctions) -> None:
    """Plug a function of this host in for one that was left behind. Raises IolaneError."""
    machine.plug_passed(given.prepare(departed), departed.port)
