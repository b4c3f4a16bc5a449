"""A physical function as carriers serve it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from iolane.carriers.vfio.config import MSIX_SIZE, ConfigView
from iolane.carriers.vfio.function import VfioFunction
from iolane.carriers.vfio.ioctl import VfioError
from iolane.carriers.vfio.passed_dma import PassedDma
from iolane.carriers.vfio.passed_irqs import PassedInterrupts, Tap
from iolane.carriers.vfio.passed_region import PassedRegion, trapped_areas
from iolane.errors import IolaneError
from iolane.model.interrupts import InterruptIndex, Interrupts
from iolane.model.pci.served import ServedFunction
from iolane.model.region import Area, Region, RegionIndex
from iolane.model.registers import RegisterMap
from iolane.model.reset import ResetKind
from iolane.uapi.pci import (
    MSIX_PBA_BIR,
    MSIX_PBA_OFFSET,
    MSIX_TABLE_BIR,
    MSIX_TABLE_OFFSET,
    BaseAddress,
    Capability,
    Command,
    Msix,
    MsixEntry,
    MsixFlags,
)
from iolane.uapi.vfio import PciRegion

BARS = 6


class MediatedFunction(ServedFunction):
    """The hardware behind a carrier: trapped accesses are made on it, the rest of its BARs is mapped by the
    guest, its interrupts and its DMA are direct.

    Args:
        function: the hardware, which stays the caller's.
        maps: BAR -> the register map that names its registers.
        trap: names of registers that must trap (globs as for traces), None for none. The guest maps the
            pages in which there is none of them.
        name: for traces; by default the function's address.

    Raises:
        VfioError: the hardware does not answer.
        IolaneError: a map is for a BAR that is not there, or too small.
    """

    migratable: ClassVar[bool] = False

    def __init__(
        self,
        function: VfioFunction,
        *,
        maps: Mapping[int, type[RegisterMap]] | None = None,
        trap: str | None = "*",
        name: str | None = None,
    ) -> None:
        super().__init__(name=str(function.address) if name is None else name)
        self.function = function
        self.maps = dict(maps or {})
        self.trap = trap
        self._passed_dma = PassedDma(self.changed, device=self.name, space=function.space)
        self.dma = self._passed_dma
        self.interrupts = Interrupts()
        for index in InterruptIndex:
            if function.irq(index).count:
                self.interrupts.add_group(PassedInterrupts(function, index))
        self.config = ConfigView(
            function, reset=lambda: self.reset(ResetKind.FLR), command_changed=self._command_changed
        )
        self._regions: list[Region | None] = [None] * len(RegionIndex)
        self._regions[RegionIndex.CONFIG] = self.config
        self._make_regions()

    def _make_regions(self) -> None:
        msix = self._msix_areas()
        for number in self.maps:
            if number not in range(BARS) or self.function.regions[number] is None:
                raise IolaneError(f"{self.name} has no BAR {number} that a register map could be for")
        for number in (*range(BARS), PciRegion.ROM):
            found = self.function.regions[number]
            if found is None:
                continue
            name = "rom" if number == PciRegion.ROM else f"bar{number}"
            kind = self.maps.get(number, RegisterMap)
            if kind.layout.size > found.size:
                raise IolaneError(
                    f"{kind.__name__} has {kind.layout.size:#x} bytes, {name} of {self.name} {found.size:#x}"
                )
            self._regions[number] = PassedRegion(
                self.function,
                found,
                name=name,
                registers=kind() if kind.layout.size else None,
                trap=trapped_areas(kind, name, self.trap),
                kernel_only=msix.get(number, ()),
                io=bool(self.config.bars.get(number, 0) & BaseAddress.SPACE_IO),
            )

    def _msix_areas(self) -> dict[int, list[Area]]:
        """BAR -> where MSI-X table and pending bits are in it: the host's interrupts are named there."""
        found = self.config.capability(Capability.MSIX)
        areas: dict[int, list[Area]] = {}
        if found is None:
            return areas
        raw = self.function.read(PciRegion.CONFIG, found.offset, MSIX_SIZE)
        vectors = (int.from_bytes(raw[Msix.FLAGS : Msix.FLAGS + 2], "little") & MsixFlags.QSIZE) + 1
        table = int.from_bytes(raw[Msix.TABLE : Msix.TABLE + 4], "little")
        pending = int.from_bytes(raw[Msix.PBA : Msix.PBA + 4], "little")
        areas.setdefault(table & MSIX_TABLE_BIR, []).append(
            Area(table & MSIX_TABLE_OFFSET, vectors * MsixEntry.SIZE)
        )
        areas.setdefault(pending & MSIX_PBA_BIR, []).append(
            Area(pending & MSIX_PBA_OFFSET, -(-vectors // 64) * 8)
        )
        return areas

    @property
    def regions(self) -> tuple[Region | None, ...]:
        return tuple(self._regions)

    def _passed_regions(self) -> list[PassedRegion]:
        return [region for region in self._regions if isinstance(region, PassedRegion)]

    def _groups(self) -> list[PassedInterrupts]:
        groups = (self.interrupts.group(index) for index in InterruptIndex)
        return [group for group in groups if isinstance(group, PassedInterrupts)]

    def _command_changed(self, command: Command) -> None:
        """Decoding was perhaps off and is on again: what an access found off stays so in an old mapping."""
        if command & Command.MEMORY:
            self._forget_mappings()

    def _forget_mappings(self) -> None:
        for region in self._passed_regions():
            region.forget_mapping()

    # What carriers, hooks and recorders do.

    def inject(self, index: InterruptIndex, vector: int = 0) -> bool:
        """Interrupt the guest as if the hardware had. True if the vector is connected."""
        with self.lock:
            return self.interrupts.group(index).trigger(vector)

    def tap_interrupts(self, tap: Tap | None) -> None:
        """Put somebody between the hardware's interrupts and the guest, or take them out again."""
        with self.lock:
            for group in self._groups():
                group.tap(tap)

    def reset_registers(self, kind: ResetKind) -> None:
        """Reset the hardware, awake."""
        self.config.reset()
        self.config.wake()
        self._forget_mappings()
        try:
            self.function.reset()
        except VfioError as error:
            self.report_error("reset", error)

    def disconnect(self) -> None:
        """The guest is gone: the hardware must not do anything for it any more. Its DMA ends first."""
        with self.lock:
            self._guard("bus master off", lambda: self.function.set_command(bus_master=False))
            self._guard("interrupts off", self.interrupts.disconnect_all)
            super().disconnect()
            self.reset()

    def statistics(self) -> dict[str, int | float | str]:
        return {
            "maps_in_iommu": len(self.function.space.maps),
            "maps_out_of_reach": len(self._passed_dma.out_of_reach),
            "unanswered": sum(region.unanswered for region in self._passed_regions()),
        }

    def close(self) -> None:
        """Let go of the hardware; it stays open."""
        super().close()
        for region in self._passed_regions():
            region.close()
