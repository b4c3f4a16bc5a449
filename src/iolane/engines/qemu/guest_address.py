"""Where the guest finds a device: its PCI address, by the bus numbers that the guest gave."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from iolane.engines.qemu.qmp import Qmp
from iolane.errors import IolaneError
from iolane.model.pci import PcieId


def guest_address(qmp: Qmp, identity: str) -> PcieId:
    """The address of the device `identity` in the guest.

    Raises:
        IolaneError: no function has this id, or the guest has not numbered its bus.
    """
    for device in _functions(qmp.execute("query-pci")):
        if device.get("qdev_id") == identity:
            bus = device["bus"]
            if not bus:  # behind a bridge whose secondary bus number is as after a reset
                break
            return PcieId(0, bus, device["slot"], device["function"])
    raise IolaneError(f"the guest has not found {identity} yet", remedy="is the guest up?")


def _functions(buses: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every function of these buses and of those behind bridges."""
    for bus in buses:
        for device in bus.get("devices", []):
            yield device
            yield from _functions([device.get("pci_bridge", {})])
