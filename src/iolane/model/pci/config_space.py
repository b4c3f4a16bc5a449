"""The 4096 bytes of configuration space: header, capabilities, extended capabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from iolane.errors import IolaneError
from iolane.model.pci.bar import BuiltBar, bar_value
from iolane.model.pci.capability import BoundCapability
from iolane.model.pci.header import Command, Type0Header
from iolane.model.region import Piece, Region, RegionIndex
from iolane.model.registers import Register32
from iolane.model.reset import ResetKind

CONFIG_SIZE = 4096
CAPABILITIES_START = 0x40
EXTENDED_START = 0x100


class Identity:
    """The constants of a function's header."""

    def __init__(
        self,
        *,
        vendor_id: int,
        device_id: int,
        class_code: int,
        revision_id: int,
        subsystem_vendor_id: int,
        subsystem_id: int,
        interrupt_pin: int,
    ) -> None:
        self.vendor_id = vendor_id
        self.device_id = device_id
        self.class_code = class_code
        self.revision_id = revision_id
        self.subsystem_vendor_id = subsystem_vendor_id
        self.subsystem_id = subsystem_id
        self.interrupt_pin = interrupt_pin


class ConfigSpace(Region):
    """Config space of one function.

    Args:
        identity: constants of the header.
        bars: the BARs, for sizing.
        capabilities: in the order in which they are chained, named for the trace.
        command_changed: called after a write to COMMAND, a load and a reset.
        header: the header's registers, another type for a function whose header is not the usual one.

    Raises:
        IolaneError: the capabilities do not fit.
    """

    def __init__(
        self,
        identity: Identity,
        bars: Sequence[BuiltBar],
        capabilities: Sequence[tuple[str, BoundCapability]],
        command_changed: Callable[[Command], None],
        header: type[Type0Header] = Type0Header,
    ) -> None:
        self.storage = memoryview(bytearray(CONFIG_SIZE))
        self.header = header()
        self.header.bind(self.storage[: self.header.layout.storage_size])
        self.capabilities = [capability for _, capability in capabilities]
        self._identity = identity
        self._bars = {bar.number: bar for bar in bars}
        self._command_changed = command_changed
        pieces = [Piece(0, self.header.layout.storage_size, self.header, "config")]
        pieces += self._place([item for item in capabilities if not item[1].extended], CAPABILITIES_START)
        pieces += self._place([item for item in capabilities if item[1].extended], EXTENDED_START)
        super().__init__(RegionIndex.CONFIG, CONFIG_SIZE, pieces, name="config", widest=4)
        self.header.hook_write(header.COMMAND, command_changed)
        self.header.hook_write(header.BAR, self._bar_written)
        self.reset(ResetKind.CONVENTIONAL)

    def _place(self, capabilities: list[tuple[str, BoundCapability]], offset: int) -> list[Piece]:
        limit = EXTENDED_START if offset < EXTENDED_START else CONFIG_SIZE
        pieces = []
        for position, (name, capability) in enumerate(capabilities):
            following = offset + capability.size
            if following > limit:
                raise IolaneError(
                    f"the capabilities do not fit into config space: {name} ends at {following:#x}"
                )
            capability.place(offset, self.storage[offset:])
            capability.link(following if position + 1 < len(capabilities) else 0)
            pieces.append(Piece(offset, capability.size, capability.registers, f"config.{name}"))
            offset = following
        return pieces

    def reset(self, kind: ResetKind) -> None:
        """Header and capabilities take their reset values (PCI Express Base 6.0, 6.6)."""
        self.header.reset()
        self._fill_header()
        for capability in self.capabilities:
            capability.reset(kind)
        for index in range(6):
            self.header.BAR[index] = bar_value(self._bars, index, 0)
        self._command_changed(self.header.COMMAND)

    def _fill_header(self) -> None:
        header, identity = self.header, self._identity
        header.VENDOR_ID = identity.vendor_id
        header.DEVICE_ID = identity.device_id
        header.REVISION_ID = identity.revision_id
        header.PROGRAMMING_INTERFACE = identity.class_code & 0xFF
        header.SUB_CLASS = identity.class_code >> 8 & 0xFF
        header.BASE_CLASS = identity.class_code >> 16
        header.SUBSYSTEM_VENDOR_ID = identity.subsystem_vendor_id
        header.SUBSYSTEM_ID = identity.subsystem_id
        header.INTERRUPT_PIN = identity.interrupt_pin
        first = next((item.offset for item in self.capabilities if not item.extended), 0)
        header.CAPABILITIES_POINTER = first
        header.STATUS = header.STATUS.replace(CAPABILITIES_LIST=1 if first else 0)

    def loaded(self) -> None:
        """Saved bytes were put into the storage: constants are set again, and what follows from the rest
        follows.
        """
        self._fill_header()
        for index in range(6):
            self.header.BAR[index] = bar_value(self._bars, index, self.header.BAR[index])
        for capability in self.capabilities:
            capability.loaded()
        self._command_changed(self.header.COMMAND)

    def _bar_written(self, index: int, value: Register32) -> None:
        self.header.BAR[index] = bar_value(self._bars, index, value)

    def bar_address(self, index: int) -> int | None:
        """Where the guest put the BAR, or None while it does not decode (COMMAND) or does not exist."""
        bar = self._bars.get(index)
        if bar is None:
            return None
        command = self.header.COMMAND
        if not (command.IO if bar.flags & 1 else command.MEMORY):
            return None
        address = self.header.BAR[index] & ~(3 if bar.flags & 1 else 15)
        return address | (self.header.BAR[index + 1] << 32 if bar.wide else 0)

    @property
    def interrupt_status(self) -> bool:
        """STATUS.INTERRUPT: the level of the interrupt pin."""
        return bool(self.header.STATUS.INTERRUPT)

    @interrupt_status.setter
    def interrupt_status(self, level: bool) -> None:
        self.header.STATUS = self.header.STATUS.replace(INTERRUPT=int(level))

    @property
    def intx_disabled(self) -> bool:
        """COMMAND.INTX_DISABLE."""
        return bool(self.header.COMMAND.INTX_DISABLE)
