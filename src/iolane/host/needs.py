"""What the host itself needs: functions whose loss would take its disks, its network or its screen away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from iolane.host.block import disk_uses, disks, is_claimed
from iolane.host.function import HostFunction
from iolane.host.network import default_routes, interfaces
from iolane.host.sysfs import Host
from iolane.model.pci.pcie_id import PcieId

_DISPLAY = 0x03


@dataclass(frozen=True)
class Need:
    """Why the host needs a function, and what to do before it may go."""

    kind: str
    """`disk`, `default-route`, `only-nic`, `display`."""
    text: str
    remedy: str


def needs(host: Host, functions: list[HostFunction], *, probe: bool = False) -> dict[PcieId, list[Need]]:
    """What the host needs of each function; of a physical function also what it needs of its virtual ones.

    `probe` asks the kernel about disks that sysfs shows no use of, by opening them; that may wake a disk.
    """
    found: dict[PcieId, list[Need]] = {function.address: [] for function in functions}
    of_disks = _of_disks(host, functions, probe)
    for address, need in [*of_disks, *_of_network(host, functions), *_of_display(functions)]:
        found.setdefault(address, []).append(need)
    for each in functions:
        if each.physical_function is not None:
            for need in found[each.address]:
                inherited = Need(need.kind, f"its virtual function {each.address} {need.text}", need.remedy)
                found.setdefault(each.physical_function, []).append(inherited)
    return found


def _of_disks(host: Host, functions: list[HostFunction], probe: bool) -> Iterator[tuple[PcieId, Need]]:
    uses = disk_uses(host)
    for address in dict.fromkeys(use.function for use in uses):
        said = "; ".join(str(use) for use in uses if use.function == address)
        remedy = "unmount it, swapoff it, or take it out of what it is part of"
        yield address, Need("disk", f"holds a disk in use: {said}", remedy)
    if not probe:
        return
    known = {(use.function, use.disk) for use in uses}
    for function in functions:
        for disk in disks(host, function.address):
            if (function.address, disk) not in known and is_claimed(host, disk):
                text = f"holds a disk in use: {disk} is claimed by a file system or volume manager"
                yield function.address, Need("disk", text, "see lsblk, zpool status, fuser")


def _of_network(host: Host, functions: list[HostFunction]) -> list[tuple[PcieId, Need]]:
    found = [
        (
            route.interface.function,
            Need(
                "default-route",
                f"carries the host's default route ({route})",
                "lead the default route over another interface first",
            ),
        )
        for route in default_routes(host)
    ]
    physical = {each.address: each.physical_function or each.address for each in functions}
    cards = {physical.get(each.function, each.function) for each in interfaces(host)}
    if len(cards) == 1:
        only = Need(
            "only-nic", "is the host's only network interface", "give the host another way to the network"
        )
        found.append((cards.pop(), only))
    return found


def _of_display(functions: list[HostFunction]) -> list[tuple[PcieId, Need]]:
    return [
        (
            each.address,
            Need(
                "display",
                "is the host's boot display",
                "use the host over the network or a serial line, or boot with another display",
            ),
        )
        for each in functions
        if each.base_class == _DISPLAY and each.boot_vga and each.driver is not None
    ]
