"""Binding a function to a driver and undoing it: driver_override, unbind, drivers_probe.

(Documentation/ABI/testing/sysfs-bus-pci)
"""

from __future__ import annotations

from iolane.host.function import DEVICES
from iolane.host.journal import TakenFunction
from iolane.host.sysfs import Host, HostError
from iolane.host.users import vfio_users
from iolane.host.vfio_driver import DRIVERS, VFIO_PCI
from iolane.model.pci.pcie_id import PcieId

PROBE = "/sys/bus/pci/drivers_probe"
_USERS_DEADLINE = 5.0
"""Seconds that a user who is just ending gets before giving back is refused."""


def driver_of(host: Host, address: PcieId) -> str | None:
    """The driver it is bound to now."""
    return host.link(f"{DEVICES}/{address}/driver")


def bind_to_vfio(host: Host, address: PcieId) -> None:
    """From whatever driver to vfio-pci; returns when it is bound.

    Raises:
        HostError: the kernel refused a step; what was done stays done.
    """
    if driver_of(host, address) == VFIO_PCI:
        return
    _override(host, address, VFIO_PCI)
    _unbind(host, address)
    _probe(host, address, VFIO_PCI)


def give_back(host: Host, entry: TakenFunction) -> None:
    """Bring a function to the state that `entry` remembers, from wherever taking or giving back stopped.

    Raises:
        HostError: somebody uses it, or the driver is not there any more. It can be tried again.
    """
    address, driver = entry.pcie_id, driver_of(host, entry.pcie_id)
    if not host.exists(f"{DEVICES}/{address}"):  # unplugged, or a virtual function that was removed
        return
    if driver == VFIO_PCI and entry.driver != VFIO_PCI:
        _refuse_while_used(host, address)
        _unbind(host, address)
        driver = None
    if driver is None and entry.driver is not None:
        if not host.exists(f"{DRIVERS}/{entry.driver}"):
            _override(host, address, entry.driver_override)
            raise HostError(
                f"{address} has no driver now: {entry.driver}, which it had, is not loaded",
                remedy=f"modprobe {entry.driver}, then `iolane host release {address}`",
            )
        _override(host, address, entry.driver)  # binds to this one even if another claims it too
        try:
            _probe(host, address, entry.driver)
        finally:
            _override(host, address, entry.driver_override)
    _override(host, address, entry.driver_override)


def _override(host: Host, address: PcieId, driver: str | None) -> None:
    path = f"{DEVICES}/{address}/driver_override"
    if host.read(path) != (driver or "(null)"):
        host.write(path, f"{driver or ''}\n")


def _unbind(host: Host, address: PcieId) -> None:
    if driver_of(host, address) is not None:
        host.write(f"{DEVICES}/{address}/driver/unbind", str(address))
        host.wait(lambda: driver_of(host, address) is None, what=f"{address} is without driver")


def _probe(host: Host, address: PcieId, driver: str) -> None:
    host.write(PROBE, str(address))
    try:
        host.wait(lambda: driver_of(host, address) == driver, what=f"{address} is bound to {driver}")
    except HostError as error:
        raise HostError(
            f"the driver {driver} did not take {address}", remedy="dmesg says why", number=error.number
        ) from error


def _refuse_while_used(host: Host, address: PcieId) -> None:
    try:
        host.wait(lambda: not vfio_users(host, address), what="nobody uses it", deadline=_USERS_DEADLINE)
    except HostError as error:
        users = ", ".join(vfio_users(host, address))
        raise HostError(f"{address} is in use by {users}", remedy="end it first") from error
