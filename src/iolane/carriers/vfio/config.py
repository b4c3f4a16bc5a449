"""Config space of a physical function as a guest sees it.

The kernel's VFIO keeps a guest from what could hurt the host. What is left to make a guest's own function of
it is done here, as QEMU's hw/vfio/pci.c does it: BARs that are sized and placed by the guest, none of the
host's addresses, MSI and MSI-X that are only stored (vectors are set by VFIO_DEVICE_SET_IRQS), one function,
capabilities hidden that nobody emulates, and resets by way of VFIO.
"""

from __future__ import annotations

from collections.abc import Callable

from iolane.carriers.vfio.capability_chain import (
    FoundCapability,
    extended_capabilities,
    standard_capabilities,
)
from iolane.carriers.vfio.emulated_bits import EmulatedBits
from iolane.carriers.vfio.function import VfioFunction
from iolane.model.pci.caps.express import ExpressRegisters
from iolane.model.pci.caps.msi import MsiRegisters
from iolane.model.pci.caps.msix import MsixRegisters
from iolane.model.pci.caps.power_management import PowerManagementRegisters
from iolane.model.pci.header import Type0Header
from iolane.model.region import Piece, Region, RegionIndex
from iolane.model.registers import RegisterMap
from iolane.uapi.pci import (
    CFG_SPACE_SIZE,
    BaseAddress,
    Capability,
    Command,
    Header,
    Msi,
    MsiFlags,
    Msix,
    MsixFlags,
    PmControl,
    PowerManagement,
)
from iolane.uapi.pcie import DevCtl, Express, ExtendedCapability
from iolane.uapi.vfio import PciRegion

MULTI_FUNCTION = 0x80
ROM_ENABLE = 0x1
AF_CONTROL, AF_INITIATE_FLR = 4, 0x1
"""Advanced Features (PCI ECN "Advanced Capabilities for Conventional PCI")."""
MSIX_SIZE = 12
HIDDEN = frozenset(
    {
        0,  # the kernel hides it already
        ExtendedCapability.SRIOV,  # a guest can't make virtual functions of the host's
        ExtendedCapability.ARI,  # names the next function, which the guest does not have
        ExtendedCapability.REBAR,  # would change the size of the host's BARs
    }
)
"""Extended capabilities that a guest does not see."""
NAMES: dict[int, tuple[str, type[RegisterMap]]] = {
    Capability.PM: ("power", PowerManagementRegisters),
    Capability.MSI: ("msi", MsiRegisters),
    Capability.MSIX: ("msix", MsixRegisters),
    Capability.EXP: ("express", ExpressRegisters),
}
"""Names that traces give to registers of capabilities."""


class ConfigView(Region):
    """Config space of a function for a guest. Accesses are of 1, 2 or 4 bytes.

    Args:
        function: the hardware.
        reset: called where the guest asks for a function level reset.
        command_changed: called after a write to COMMAND, with the new value.
    """

    def __init__(
        self,
        function: VfioFunction,
        *,
        reset: Callable[[], object],
        command_changed: Callable[[Command], object] = lambda _: None,
    ) -> None:
        self._function = function
        self._reset = reset
        self._command_changed = command_changed
        size = function.region(PciRegion.CONFIG).size
        raw = function.read(PciRegion.CONFIG, 0, size)
        self._bits = EmulatedBits(size)
        self.standard = standard_capabilities(raw)
        self.extended = extended_capabilities(raw)
        self._flr: list[tuple[int, int]] = []
        """(offset of a 16-bit register, bit) that starts a function level reset."""
        self.bars = self._claim_bars(raw)
        self._bits.claim(Header.HEADER_TYPE, 1, mask=MULTI_FUNCTION)
        self._claim_standard(raw)
        self._claim_extended()
        self._bits.seal()
        super().__init__(RegionIndex.CONFIG, size, self._pieces(), name="config", widest=4)
        self.read, self.write = self._load, self._store

    # What is ours.

    def _claim_bars(self, raw: bytes) -> dict[int, int]:
        """BARs by number, with the low bits that say what they are. Their sizes are VFIO's."""
        kinds: dict[int, int] = {}
        upper = False
        for number in range(6):
            offset = Header.BASE_ADDRESS_0 + 4 * number
            if upper:
                upper = False
                continue
            region = self._function.regions[number]
            if region is None:
                self._bits.claim(offset, 4)
                continue
            word = int.from_bytes(raw[offset : offset + 4], "little")
            io = word & BaseAddress.SPACE_IO
            kind = word & (0x3 if io else 0xF)
            kinds[number] = kind
            mask = ~(region.size - 1) & 0xFFFF_FFFF_FFFF_FFFF & ~kind
            self._bits.claim(offset, 4, value=kind, writable=mask & 0xFFFF_FFFF)
            if not io and kind & BaseAddress.MEM_TYPE_64 and number < 5:
                self._bits.claim(offset + 4, 4, writable=mask >> 32)
                upper = True
        rom = self._function.regions[PciRegion.ROM]
        writable = 0 if rom is None else (~(rom.size - 1) & 0xFFFF_F800) | ROM_ENABLE
        self._bits.claim(Header.ROM_ADDRESS, 4, writable=writable)
        return kinds

    def _claim_standard(self, raw: bytes) -> None:
        for found in self.standard:
            if found.id == Capability.MSI:
                self._claim_msi(
                    found.offset, int.from_bytes(raw[found.offset + 2 : found.offset + 4], "little")
                )
            elif found.id == Capability.MSIX:
                whole = int.from_bytes(raw[found.offset : found.offset + MSIX_SIZE], "little")
                enable = (MsixFlags.ENABLE | MsixFlags.MASKALL) << 8 * Msix.FLAGS
                # Not enabled, whatever the host's state is.
                self._bits.claim(found.offset, MSIX_SIZE, value=whole & ~enable, writable=enable)
            elif found.id == Capability.EXP:
                self._flr.append((found.offset + Express.DEVCTL, DevCtl.BCR_FLR))
            elif found.id == Capability.AF:
                self._flr.append((found.offset + AF_CONTROL, AF_INITIATE_FLR))

    def _claim_msi(self, offset: int, control: int) -> None:
        """Everything but what it can do; it is not enabled."""
        granted = MsiFlags.ENABLE | MsiFlags.QSIZE
        self._bits.claim(offset + Msi.FLAGS, 2, value=control & ~granted, writable=granted)
        self._bits.claim(offset + Msi.ADDRESS_LO, 4, writable=0xFFFF_FFFC)
        data = Msi.DATA_32
        if control & MsiFlags._64BIT:
            self._bits.claim(offset + Msi.ADDRESS_HI, 4, writable=0xFFFF_FFFF)
            data = Msi.DATA_64
        self._bits.claim(offset + data, 2, writable=0xFFFF)
        if control & MsiFlags.MASKBIT:
            self._bits.claim(offset + data + 4, 4, writable=0xFFFF_FFFF)

    def _claim_extended(self) -> None:
        """Chain what a guest may see; of the rest nothing can be read."""
        shown = [found for found in self.extended if found.id not in HIDDEN]
        hidden = [found for found in self.extended if found.id in HIDDEN]
        for found in hidden:
            self._bits.claim(found.offset, found.size)
        for place, found in enumerate(shown):
            following = shown[place + 1].offset if place + 1 < len(shown) else 0
            self._bits.claim(found.offset, 4, value=_header(found, following))
        if shown and shown[0].offset != CFG_SPACE_SIZE:
            # The chain begins at 0x100, with an empty capability where the first one is hidden.
            self._bits.claim(CFG_SPACE_SIZE, 4, value=shown[0].offset << 20)

    def _pieces(self) -> list[Piece]:
        """What traces name registers by; they hold no values."""
        header = Type0Header()
        pieces = [Piece(0, header.layout.storage_size, header, "config")]
        for found in self.standard:
            if found.id in NAMES:
                name, registers = NAMES[found.id]
                size = min(registers.layout.size, found.size)
                pieces.append(Piece(found.offset, size, registers(), f"config.{name}"))
        return pieces

    # Accesses.

    def _load(self, offset: int, size: int) -> int:
        if self._bits.whole(offset, size):
            return self._bits.value(offset, size)
        raw = int.from_bytes(self._function.read(PciRegion.CONFIG, offset, size), "little")
        return self._bits.merge(offset, size, raw)

    def _store(self, offset: int, size: int, value: int) -> None:
        self._bits.write(offset, size, value)
        wants_reset, value = self._take_flr(offset, size, value)
        if not self._bits.whole(offset, size):
            self._function.write(PciRegion.CONFIG, offset, value.to_bytes(size, "little"))
        if offset <= Header.COMMAND + 1 and offset + size > Header.COMMAND:
            raw = self._function.read(PciRegion.CONFIG, Header.COMMAND, 2)
            self._command_changed(Command(int.from_bytes(raw, "little")))
        if wants_reset:
            self._reset()

    def _take_flr(self, offset: int, size: int, value: int) -> tuple[bool, int]:
        """Whether the write asks for a function level reset, and the write without it."""
        wanted = False
        for register, bit in self._flr:
            shift = 8 * (register - offset)
            mask = bit << shift if shift >= 0 else bit >> -shift
            mask &= (1 << 8 * size) - 1
            if value & mask:
                wanted, value = True, value & ~mask
        return wanted, value

    # State.

    def capability(self, identity: Capability) -> FoundCapability | None:
        """The standard capability of this id."""
        return next((found for found in self.standard if found.id == identity), None)

    @property
    def power_state(self) -> int:
        """0 for D0 to 3 for D3hot; without power management always D0."""
        found = self.capability(Capability.PM)
        if found is None:
            return 0
        raw = self._function.read(PciRegion.CONFIG, found.offset + PowerManagement.CTRL, 2)
        return int.from_bytes(raw, "little") & PmControl.STATE_MASK

    def wake(self) -> None:
        """D0: a function that sleeps answers nothing, not even a reset."""
        found = self.capability(Capability.PM)
        if found is None or not self.power_state:
            return
        place = found.offset + PowerManagement.CTRL
        raw = int.from_bytes(self._function.read(PciRegion.CONFIG, place, 2), "little")
        self._function.write(PciRegion.CONFIG, place, (raw & ~PmControl.STATE_MASK).to_bytes(2, "little"))

    def reset(self) -> None:
        """BARs, MSI and MSI-X are as after a reset."""
        self._bits.reset()


def _header(found: FoundCapability, following: int) -> int:
    """An extended capability's first four bytes."""
    return found.id | found.version << 16 | following << 20
