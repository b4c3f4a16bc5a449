"""Making virtual functions and removing them (Documentation/PCI/pci-iov-howto.rst)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import msgspec

from iolane.errors import IolaneError
from iolane.host.function import HostFunction, Sriov, function_directory, read_function
from iolane.host.inventory import find_function
from iolane.host.journal import Journal, MadeFunctions, Step, this_process
from iolane.host.network import interfaces
from iolane.host.nvme_admin import CLASS_CODE, DRIVER, DriverAdmin, NvmeAdmin
from iolane.host.nvme_secondary import bring_online
from iolane.host.sysfs import Host, HostError
from iolane.host.users import vfio_users
from iolane.host.vf_mac import SetMac, checked_mac, set_mac
from iolane.host.vfio_driver import VFIO_PCI
from iolane.model.pci.pcie_id import PcieId

_DEADLINE = 30.0
"""Seconds for a driver to bring its virtual functions up."""
OpenAdmin = Callable[[Host, HostFunction], contextlib.AbstractContextManager[NvmeAdmin]]
"""Opens the admin queue of a controller."""


def make_virtual_functions(
    address: PcieId,
    count: int,
    *,
    macs: Sequence[str] = (),
    host: Host | None = None,
    journal: Journal | None = None,
    owned: bool = False,
    assign_mac: SetMac = set_mac,
    open_admin: OpenAdmin = DriverAdmin,
) -> tuple[PcieId, ...]:
    """Make `count` virtual functions, without drivers, ready to be taken; `macs` for the first of them. Those
    of an NVMe controller get queues and interrupts and are brought online.

    They stay until `release` of the physical function, or, `owned`, until this process ends.

    Raises:
        IolaneError: it has no SR-IOV, has virtual functions already, or the driver refused.
    """
    host, journal = host or Host(), journal or Journal()
    addresses = [checked_mac(mac) for mac in macs]
    with journal.locked():
        function = find_function(host, address)
        sriov = _check(function, count)
        if len(addresses) > count:
            raise IolaneError(f"{len(addresses)} MAC addresses are too many for {count} virtual functions")
        interface = _interface(host, address) if addresses else ""
        entry = MadeFunctions(
            address=str(address),
            step=Step.BEGUN,
            owner=this_process() if owned else None,
            boot=journal.boot,
            count=count,
            before=sriov.enabled,
            autoprobe=sriov.autoprobe,
        )
        journal.put(entry)
        try:
            made = _make(host, function, count, sriov.autoprobe)
            for number, mac in enumerate(addresses):
                assign_mac(interface, number, mac)
            if function.class_code == CLASS_CODE and function.driver == DRIVER:
                with open_admin(host, function) as admin:
                    bring_online(admin, count)
        except BaseException:
            with contextlib.suppress(IolaneError):  # the first error is told; the entry stays for another try
                undo_virtual_functions(host, entry)
                journal.remove(entry)
            raise
        journal.put(msgspec.structs.replace(entry, step=Step.DONE))
        return made


def undo_virtual_functions(host: Host, entry: MadeFunctions) -> None:
    """Bring a physical function to what `entry` remembers, from wherever it stopped.

    Raises:
        HostError: a virtual function is in use.
    """
    function = read_function(host, entry.pcie_id)
    if function is None or function.sriov is None:  # gone, or its driver with it, and so are they
        return
    for virtual in function.sriov.virtual_functions:
        bound = host.link(f"{function_directory(virtual)}/driver") == VFIO_PCI
        if bound and (users := vfio_users(host, virtual)):
            who = ", ".join(users)
            raise HostError(f"virtual function {virtual} is in use by {who}", remedy="end it first")
    if function.sriov.enabled != entry.before:
        host.write(f"{function.directory}/sriov_numvfs", f"{entry.before}\n")
    _set_autoprobe(host, function, entry.autoprobe)


def _check(function: HostFunction, count: int) -> Sriov:
    sriov = function.sriov
    if sriov is None or sriov.total == 0:
        raise IolaneError(
            f"{function.address} has no SR-IOV",
            remedy="see `iolane host`; some firmware has a switch for it, and the driver must be loaded",
        )
    if function.driver is None:
        raise IolaneError(f"{function.address} has no driver, which is what makes virtual functions")
    if not 0 < count <= sriov.total:
        raise IolaneError(f"{function.address} can have 1 to {sriov.total} virtual functions, not {count}")
    if sriov.enabled:
        raise IolaneError(
            f"{function.address} has {sriov.enabled} virtual functions already",
            remedy=f"their number changes by way of none: iolane host vfs {function.address} 0",
        )
    return sriov


def _make(host: Host, function: HostFunction, count: int, autoprobe: bool) -> tuple[PcieId, ...]:
    _set_autoprobe(host, function, False)  # else the host's drivers take them at once
    host.write(f"{function.directory}/sriov_numvfs", f"{count}\n", deadline=_DEADLINE)

    def made() -> tuple[PcieId, ...]:
        now = read_function(host, function.address)
        return () if now is None or now.sriov is None else now.sriov.virtual_functions

    host.wait(lambda: len(made()) == count, what=f"{function.address} has {count} virtual functions")
    _set_autoprobe(host, function, autoprobe)
    return made()


def _set_autoprobe(host: Host, function: HostFunction, wanted: bool) -> None:
    """The attribute is there since Linux 4.13."""
    path = f"{function.directory}/sriov_drivers_autoprobe"
    if (present := host.read(path)) is not None and (present != "0") != wanted:
        host.write(path, f"{int(wanted)}\n")


def _interface(host: Host, address: PcieId) -> str:
    names = [interface.name for interface in interfaces(host) if interface.function == address]
    if not names:
        raise IolaneError(
            f"{address} has no network interface, by which its virtual functions get MAC addresses",
            remedy="leave --mac out",
        )
    return names[0]
