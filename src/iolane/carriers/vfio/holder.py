"""What this process tells about a function it holds, to `iolane host dma` and `iolane host faults`."""

from __future__ import annotations

import os

from iolane.carriers.vfio.address_space import DmaAddressSpace
from iolane.host.holding import DmaMapReport, HeldFunction
from iolane.model.dma import Permission
from iolane.model.pci.pcie_id import PcieId


class FunctionHolder:
    """Give it to `ControlServer.add_holder` while the function is held.

    Args:
        function: its address.
        machine: the name of the machine that has it.
        space: what it reaches; None where another process makes the maps (QEMU's own vfio-pci).
    """

    def __init__(self, function: PcieId, machine: str, space: DmaAddressSpace | None) -> None:
        self._function, self._machine, self._space = function, machine, space

    def held(self) -> HeldFunction:
        """The function with its maps at this moment."""
        maps = None
        if self._space is not None:
            maps = [
                DmaMapReport(iova, size, _letters(permission)) for iova, size, permission in self._space.maps
            ]
        return HeldFunction(function=str(self._function), machine=self._machine, pid=os.getpid(), maps=maps)


def _letters(permission: Permission) -> str:
    readable = "r" if Permission.READ in permission else ""
    return readable + ("w" if Permission.WRITE in permission else "")
