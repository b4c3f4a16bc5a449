"""A virtual function of an SR-IOV device as a device class (PCI Express Base 6.0, 9.1.2)."""

from __future__ import annotations

from typing import Any, ClassVar

from iolane.model.pci.bar import BarKind
from iolane.model.pci.capability import BoundCapability
from iolane.model.pci.caps.ari import Ari
from iolane.model.pci.caps.express import PcieEndpoint, PcieVirtualEndpoint
from iolane.model.pci.caps.power_management import PowerManagement
from iolane.model.pci.config_space import ConfigSpace, Identity
from iolane.model.pci.function import PciDevice
from iolane.model.pci.header import Command, Type0Header
from iolane.model.pci.intx import Intx
from iolane.model.region import Region
from iolane.model.registers import Field, Register8, Register32, register, register_array
from iolane.model.reset import ResetKind

NO_ID = 0xFFFF
"""Vendor and device id of a VF: to a scan of the bus it looks like nothing (9.3.4.1.1, 9.3.4.1.2)."""


class VirtualCommand(Command):
    """Command of a VF: memory is enabled for all by VF MSE, there is neither I/O nor INTx (9.3.4.1.3)."""

    IO = Field(0, access="ro")
    MEMORY = Field(1, access="ro")
    PARITY_ERROR_RESPONSE = Field(6, access="ro")
    SERR_ENABLE = Field(8, access="ro")
    INTX_DISABLE = Field(10, access="ro")


class VirtualHeader(Type0Header):
    """The header of a VF: what belongs to its PF reads as 0 (9.3.4.1)."""

    COMMAND = register(0x04, VirtualCommand)
    CACHE_LINE_SIZE = register(0x0C, Register8, access="ro")
    BAR = register_array(
        0x10, Register32, 6, access="ro", doc="0: the addresses follow from the PF's VF BARs"
    )
    INTERRUPT_LINE = register(0x3C, Register8, access="ro")


class VirtualFunction(PciDevice):
    """A function that exists while its physical function's VF Enable says so.

    Subclass it like `PciDevice`; `device_id` is the VF Device ID that the PF reports. Its BARs are memory,
    its interrupts MSI or MSI-X. The PF makes it, and calls `appear`, `vanish` and `enable_memory`, each with
    its own lock held: a VF may not call its PF, or two threads might wait for each other.

    Args:
        number: 0 for the first VF of the PF.
        name: for traces and counters.

    Attributes:
        present: it exists: VF Enable is set and NumVFs is above `number`. While it does not, it does no DMA
            and sends no interrupt, and `VirtualFunctions.function_at` does not find it. Its config space can
            be read all the time, for carriers that set themselves up early.
        memory_enabled: its BARs are reached: it is present, and VF MSE is set. Else they read all ones.
        memory_shown: a guest's read of COMMAND.MEMORY gives `memory_enabled` in place of the 0 that the
            specification wants, for an engine that maps BARs by the bits that the guest writes there.
    """

    power: ClassVar[PowerManagement | None] = None
    express: ClassVar[PcieEndpoint | None] = PcieVirtualEndpoint()
    ari = Ari()

    present = False
    memory_enabled = False

    def __init__(self, *, number: int = 0, name: str | None = None) -> None:
        super().__init__(name=name)
        self.number = number
        self.memory_shown = False
        for region in self.regions:
            if region is not None and region is not self.config:
                self._gate(region)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if any(bar.kind is BarKind.IO for bar in cls._bars.values()):
            raise TypeError(f"{cls.__name__}: a VF has no I/O BAR (9.3.3.14)")
        if any(bar.memory for bar in cls._bars.values()):
            raise TypeError(
                f"{cls.__name__}: plain memory in a VF's BAR would stay mapped when VF Enable is cleared"
            )
        if isinstance(getattr(cls, "intx", None), Intx):
            raise TypeError(f"{cls.__name__}: a VF has no interrupt pin (9.3.4.1.18)")

    def _identity(self) -> Identity:
        identity = super()._identity()
        identity.vendor_id = identity.device_id = NO_ID
        return identity

    def _build_config(self, capabilities: list[tuple[str, BoundCapability]]) -> ConfigSpace:
        config = ConfigSpace(self._identity(), (), capabilities, self._command_changed, VirtualHeader)
        config.header.hook_read(VirtualHeader.COMMAND, self._read_command)
        return config

    def _read_command(self, command: VirtualCommand) -> int:
        return command.replace(MEMORY=1) if self.memory_shown and self.memory_enabled else command

    def _command_changed(self, command: Command) -> None:
        super()._command_changed(command if self.present else Command(0))

    def _gate(self, region: Region) -> None:
        """Nobody answers where memory is not enabled: an Unsupported Request, which reads as all ones."""
        read, write = region.read, region.write

        def gated_read(offset: int, size: int) -> int:
            return read(offset, size) if self.memory_enabled else (1 << 8 * size) - 1

        def gated_write(offset: int, size: int, value: int) -> None:
            if self.memory_enabled:
                write(offset, size, value)

        region.read, region.write = gated_read, gated_write

    # What the physical function says.

    def appear(self) -> None:
        """VF Enable was set: a new function, as after a conventional reset (9.3.3.3.1)."""
        with self.lock:
            self.reset(ResetKind.CONVENTIONAL)
            self.present = True

    def vanish(self) -> None:
        """VF Enable was cleared, or the PF reset: what is in flight ends, and nothing comes after it."""
        with self.lock:
            self.present = self.memory_enabled = False
            self.reset(ResetKind.CONVENTIONAL)

    def enable_memory(self, enabled: bool) -> None:
        """VF MSE changed."""
        with self.lock:
            self.memory_enabled = enabled and self.present

    def restore(self, present: bool, memory_enabled: bool) -> None:
        """The PF's saved state was loaded; the VF keeps what it has, its own state comes after."""
        with self.lock:
            self.present = present
            self.memory_enabled = present and memory_enabled
            self._command_changed(self.config.header.COMMAND)
