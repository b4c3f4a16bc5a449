"""What a carrier serves: a PCI function, whoever answers its accesses."""

from __future__ import annotations

from typing import ClassVar

from iolane.model.device import Device
from iolane.model.interrupts import Interrupts
from iolane.model.region import Region


class ServedFunction(Device):
    """A PCI function as carriers see it: regions and interrupts beside what every device has. `PciDevice` is
    one that we emulate; a mediator has one that stands for hardware.

    Attributes:
        interrupts: the kinds it has, to be connected to eventfds.
    """

    migratable: ClassVar[bool] = True
    """Its state can be saved and loaded. A carrier offers no migration of what cannot."""

    interrupts: Interrupts

    def reset_by_machine(self) -> None:
        """What a carrier's reset command does: the machine was reset, or the function's slot got power."""
        self.reset()

    @property
    def regions(self) -> tuple[Region | None, ...]:
        """The nine regions in VFIO's order (`RegionIndex`); None for one that does not exist."""
        raise NotImplementedError
