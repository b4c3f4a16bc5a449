"""Virtio structure capabilities (virtio 1.3, 4.1.4): where in the BARs the structures are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from iolane.model.pci import BoundCapability, Capability, CapabilityId
from iolane.model.region import Region
from iolane.model.registers import Register8, Register32, RegisterMap, register
from iolane.uapi.virtio import PciStructure


class StructureRegisters(RegisterMap):
    """struct virtio_pci_cap."""

    CAPABILITY_ID = register(0x0, Register8, access="ro")
    NEXT = register(0x1, Register8, access="ro")
    LENGTH_OF_CAPABILITY = register(0x2, Register8, access="ro")
    KIND = register(0x3, Register8, access="ro")
    BAR = register(0x4, Register8, access="ro")
    ID = register(0x5, Register8, access="ro")
    OFFSET = register(0x8, Register32, access="ro")
    LENGTH = register(0xC, Register32, access="ro")


class NotifyStructureRegisters(StructureRegisters):
    """struct virtio_pci_notify_cap (4.1.4.4)."""

    MULTIPLIER = register(0x10, Register32, access="ro")


class AccessRegisters(StructureRegisters):
    """struct virtio_pci_cfg_cap (4.1.4.9)."""

    BAR = register(0x4, Register8)
    OFFSET = register(0x8, Register32)
    LENGTH = register(0xC, Register32)
    DATA = register(0x10, Register32)


class StructureCapability(BoundCapability):
    """A capability that leads to one structure."""

    id = CapabilityId.VNDR
    registers: StructureRegisters

    def __init__(self, declaration: Structure) -> None:
        notify = declaration.multiplier is not None
        super().__init__(NotifyStructureRegisters() if notify else StructureRegisters())
        self._declaration = declaration

    def fill(self) -> None:
        registers, declared = self.registers, self._declaration
        registers.LENGTH_OF_CAPABILITY = registers.layout.size
        registers.KIND = declared.kind
        registers.BAR = declared.bar
        registers.OFFSET = declared.offset
        registers.LENGTH = declared.length
        if isinstance(registers, NotifyStructureRegisters):
            registers.MULTIPLIER = declared.multiplier or 0


class Structure(Capability[StructureCapability]):
    """Declare where a structure is.

    Args:
        kind: which structure.
        bar, offset, length: its place.
        multiplier: of the notification structure, bytes between two queues' addresses.
    """

    def __init__(
        self, kind: PciStructure, bar: int, offset: int, length: int, multiplier: int | None = None
    ) -> None:
        self.kind = kind
        self.bar = bar
        self.offset = offset
        self.length = length
        self.multiplier = multiplier

    def bind(self, function: object) -> StructureCapability:
        return StructureCapability(self)


class AccessCapability(BoundCapability):
    """A window through which config space reaches the BARs (4.1.4.9), for firmware that has not mapped them.

    What lies outside the structures or is not aligned reads as 0 and ignores writes.
    """

    id = CapabilityId.VNDR
    registers: AccessRegisters

    def __init__(self, bar: int, regions: Callable[[], Sequence[Region | None]]) -> None:
        super().__init__(AccessRegisters())
        self._bar = bar
        self._regions = regions
        self.registers.hook_read(AccessRegisters.DATA, self._read)
        self.registers.hook_write(AccessRegisters.DATA, self._write)

    def fill(self) -> None:
        self.registers.LENGTH_OF_CAPABILITY = self.registers.layout.size
        self.registers.KIND = PciStructure.PCI_CFG

    def _window(self) -> tuple[Region, int, int] | None:
        registers = self.registers
        offset, length = int(registers.OFFSET), int(registers.LENGTH)
        region = self._regions()[self._bar]
        if self._bar != registers.BAR or region is None or length not in (1, 2, 4):
            return None
        return (region, offset, length) if not offset % length and offset + length <= region.size else None

    def _read(self, value: Register32) -> int:
        window = self._window()
        if window is not None:
            region, offset, length = window
            self.registers.DATA = region.read(offset, length)
        return self.registers.DATA

    def _write(self, value: Register32) -> None:
        window = self._window()
        if window is not None:
            region, offset, length = window
            region.write(offset, length, value & ((1 << 8 * length) - 1))


class ConfigAccess(Capability[AccessCapability]):
    """Declare the window to one of `regions`."""

    def __init__(self, bar: int, regions: Callable[[], Sequence[Region | None]]) -> None:
        self.bar = bar
        self.regions = regions

    def bind(self, function: object) -> AccessCapability:
        return AccessCapability(self.bar, self.regions)
