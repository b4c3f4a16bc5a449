"""Single Root I/O Virtualization extended capability (PCI Express Base 6.0, 9.3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from iolane.model.pci.bar import BuiltBar, bar_value
from iolane.model.pci.capability import BoundCapability, ExtendedCapabilityId
from iolane.model.registers import (
    Field,
    Register8,
    Register16,
    Register32,
    RegisterMap,
    register,
    register_array,
)
from iolane.model.reset import ResetKind

PAGE_SHIFT = 12
"""Bit n of the page size registers stands for 2 ** (n + 12) bytes (9.3.3.12)."""
SUPPORTED_PAGES = 0x553
"""4 KiB, 8 KiB, 64 KiB, 256 KiB, 1 MiB and 4 MiB, which every PF supports (9.3.3.12)."""


class SriovCapabilities(Register32):
    """SR-IOV Capabilities (9.3.3.2). No VF Migration, no 10-bit tags."""

    VF_MIGRATION = Field(0)
    ARI_PRESERVED = Field(1)
    TEN_BIT_TAG_REQUESTER = Field(2)
    MIGRATION_INTERRUPT = Field(31, 21)


class SriovControl(Register16):
    """SR-IOV Control (9.3.3.3)."""

    VF_ENABLE = Field(0, doc="the VFs exist")
    VF_MIGRATION_ENABLE = Field(1, access="ro")
    VF_MIGRATION_INTERRUPT = Field(2, access="ro")
    VF_MSE = Field(3, doc="Memory Space Enable of all VFs")
    ARI_CAPABLE_HIERARCHY = Field(4, doc="software may reach function numbers 8 to 255")
    TEN_BIT_TAG_REQUESTER = Field(5, access="ro")


class SriovStatus(Register16):
    """SR-IOV Status (9.3.3.4)."""

    VF_MIGRATION = Field(0)


class SriovRegisters(RegisterMap):
    """The capability's registers."""

    HEADER = register(0x00, Register32, access="ro")
    CAPABILITIES = register(0x04, SriovCapabilities, access="ro")
    CONTROL = register(0x08, SriovControl)
    STATUS = register(0x0A, SriovStatus, access="ro")
    INITIAL_VFS = register(0x0C, Register16, access="ro")
    TOTAL_VFS = register(0x0E, Register16, access="ro")
    NUM_VFS = register(0x10, Register16, doc="VFs to exist; kept while VF_ENABLE is set")
    FUNCTION_LINK = register(0x12, Register8, access="ro", doc="function number of the PF it depends on")
    FIRST_VF_OFFSET = register(0x14, Register16, access="ro", doc="routing id of the first VF less the PF's")
    VF_STRIDE = register(0x16, Register16, access="ro", doc="routing id of a VF less that of the one before")
    VF_DEVICE_ID = register(0x1A, Register16, access="ro")
    SUPPORTED_PAGE_SIZES = register(0x1C, Register32, access="ro", reset=SUPPORTED_PAGES)
    SYSTEM_PAGE_SIZE = register(0x20, Register32, reset=1, doc="one bit; kept while VF_ENABLE is set")
    VF_BAR = register_array(0x24, Register32, 6)
    MIGRATION_STATE = register(0x3C, Register32, access="ro")


class Layout(NamedTuple):
    """What a PF says of its VFs."""

    device_id: int
    total: int
    first_offset: int
    stride: int
    function: int


class Aperture(NamedTuple):
    """Where the guest finds one BAR of all VFs, in bytes: `functions` times `stride` from `address` on."""

    address: int
    stride: int
    functions: int


class Found(NamedTuple):
    """What an address in an aperture belongs to."""

    vf: int
    bar: int
    offset: int


class SriovCapability(BoundCapability):
    """The registers and their rules. Where the specification calls a write's result undefined (more VFs than
    there are; NumVFs, System Page Size or ARI Capable Hierarchy while VF Enable is set; a page size that
    isn't supported), the register keeps what it has.

    Args:
        layout: the constants.
        bars: the BARs of one VF.

    Attributes:
        changed: called when VF Enable, VF MSE or the place of the VF BARs changed, and with True when that
            came by loading a saved state. Set by whoever owns the VFs.
    """

    id = ExtendedCapabilityId.SRIOV
    extended = True
    registers: SriovRegisters

    def __init__(self, layout: Layout, bars: Sequence[BuiltBar]) -> None:
        super().__init__(SriovRegisters())
        self.layout = layout
        self.bars = {bar.number: bar for bar in bars}
        self.changed: Callable[[bool], None] = lambda loaded: None
        self._control = SriovControl(0)
        self._num_vfs = 0
        self._pages = 1
        registers = self.registers
        registers.hook_write(SriovRegisters.CONTROL, self._control_written)
        registers.hook_write(SriovRegisters.NUM_VFS, self._num_vfs_written)
        registers.hook_write(SriovRegisters.SYSTEM_PAGE_SIZE, self._page_size_written)
        registers.hook_write(SriovRegisters.VF_BAR, self._bar_written)

    # What follows from the registers.

    @property
    def enabled_vfs(self) -> int:
        """VFs that exist: NumVFs while VF Enable is set (9.3.3.7)."""
        return self._num_vfs if self._control.VF_ENABLE else 0

    @property
    def memory_enabled(self) -> bool:
        """The VFs' BARs are reached (9.3.3.3.4)."""
        return bool(self._control.VF_ENABLE and self._control.VF_MSE)

    @property
    def page_size(self) -> int:
        """System Page Size in bytes; VF BARs are no smaller and aligned to it (9.3.3.13)."""
        return self._pages << PAGE_SHIFT

    def routing_offset(self, vf: int) -> int:
        """What is added to the PF's routing id for that of VF `vf` (9.2.1.2); the sum has 16 bits."""
        return self.layout.first_offset + vf * self.layout.stride

    def vf_at(self, routing_offset: int) -> int | None:
        """The VF that exists at `routing_offset` from the PF's routing id, or None."""
        vf, beside = divmod((routing_offset - self.layout.first_offset) & 0xFFFF, self.layout.stride)
        return vf if not beside and vf < self.enabled_vfs else None

    def aperture(self, bar: int) -> Aperture | None:
        """Where the VFs' BAR `bar` is, or None while it decodes nothing (9.3.3.14). A BAR that was given no
        address does not decode: address 0 is nobody's.
        """
        found = self.bars.get(bar)
        if found is None or not self.memory_enabled or not self._num_vfs:
            return None
        registers = self.registers
        address = registers.VF_BAR[bar] & ~0xF | (registers.VF_BAR[bar + 1] << 32 if found.wide else 0)
        return Aperture(address, self._stretched(found).size, self._num_vfs) if address else None

    def address(self, vf: int, bar: int) -> int | None:
        """Where BAR `bar` of VF `vf` is, or None while it decodes nothing."""
        aperture = self.aperture(bar)
        return aperture.address + vf * aperture.stride if aperture and vf < aperture.functions else None

    def find(self, address: int) -> Found | None:
        """The VF whose BAR has `address`, or None. What the page size adds behind a small BAR is nobody's."""
        for number, bar in self.bars.items():
            aperture = self.aperture(number)
            if aperture is not None and address >= aperture.address:
                vf, offset = divmod(address - aperture.address, aperture.stride)
                if vf < aperture.functions and offset < bar.size:
                    return Found(vf, number, offset)
        return None

    # Writes.

    def _stretched(self, bar: BuiltBar) -> BuiltBar:
        return bar._replace(size=max(bar.size, self.page_size))

    def _masked(self, index: int, value: int) -> int:
        return bar_value({n: self._stretched(bar) for n, bar in self.bars.items()}, index, value)

    def _control_written(self, value: SriovControl) -> None:
        before = self._control
        if before.VF_ENABLE:
            value = value.replace(ARI_CAPABLE_HIERARCHY=before.ARI_CAPABLE_HIERARCHY)
        self.registers.CONTROL = self._control = value
        if (value ^ before) & (SriovControl.VF_ENABLE.mask | SriovControl.VF_MSE.mask):
            self.changed(False)

    def _num_vfs_written(self, value: Register16) -> None:
        if not self._control.VF_ENABLE and value <= self.layout.total:
            self._num_vfs = int(value)
        self.registers.NUM_VFS = self._num_vfs

    def _page_size_written(self, value: Register32) -> None:
        one_bit = value and not value & (value - 1)
        if not self._control.VF_ENABLE and one_bit and value & SUPPORTED_PAGES:
            self._pages = int(value)
            self._mask_bars()
        self.registers.SYSTEM_PAGE_SIZE = self._pages

    def _bar_written(self, index: int, value: Register32) -> None:
        self.registers.VF_BAR[index] = self._masked(index, value)
        if self.memory_enabled:
            self.changed(False)

    def _mask_bars(self) -> None:
        for index, value in enumerate(self.registers.VF_BAR):
            self.registers.VF_BAR[index] = self._masked(index, value)

    # Reset and state.

    def reset(self, kind: ResetKind) -> None:
        """The capability is reset with its PF, by FLR too: the VFs no longer exist (9.2.2.2)."""
        super().reset(kind)
        self._control, self._num_vfs, self._pages = SriovControl(0), 0, 1
        self._mask_bars()
        self.changed(False)

    def fill(self) -> None:
        registers, layout = self.registers, self.layout
        registers.CAPABILITIES = registers.STATUS = registers.MIGRATION_STATE = 0
        registers.INITIAL_VFS = registers.TOTAL_VFS = layout.total
        registers.FUNCTION_LINK = layout.function
        registers.FIRST_VF_OFFSET = layout.first_offset
        registers.VF_STRIDE = layout.stride
        registers.VF_DEVICE_ID = layout.device_id
        registers.SUPPORTED_PAGE_SIZES = SUPPORTED_PAGES

    def loaded(self) -> None:
        super().loaded()
        registers = self.registers
        self._control = SriovControl(0).replace(
            VF_ENABLE=registers.CONTROL.VF_ENABLE,
            VF_MSE=registers.CONTROL.VF_MSE,
            ARI_CAPABLE_HIERARCHY=registers.CONTROL.ARI_CAPABLE_HIERARCHY,
        )
        registers.CONTROL = self._control
        pages = int(registers.SYSTEM_PAGE_SIZE)
        self._pages = pages if pages & SUPPORTED_PAGES and not pages & (pages - 1) else 1
        self._num_vfs = min(int(registers.NUM_VFS), self.layout.total)
        registers.SYSTEM_PAGE_SIZE, registers.NUM_VFS = self._pages, self._num_vfs
        self._mask_bars()
        self.changed(True)
