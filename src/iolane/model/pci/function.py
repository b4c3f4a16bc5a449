"""A PCI function as a device class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, ClassVar

from iolane.errors import IolaneError
from iolane.model.interrupts import InterruptGroup, InterruptIndex, Interrupts, IntxLine
from iolane.model.pci.bar import HOOKS_ATTRIBUTE, Bar, BarKind, BuiltBar, Hook
from iolane.model.pci.capability import BoundCapability, Capability
from iolane.model.pci.caps.express import PcieEndpoint
from iolane.model.pci.caps.msi import Msi, MsiCapability
from iolane.model.pci.caps.msix import Msix, MsixCapability
from iolane.model.pci.caps.power_management import PowerManagement
from iolane.model.pci.config_space import ConfigSpace, Identity
from iolane.model.pci.header import Command
from iolane.model.pci.intx import Intx
from iolane.model.pci.served import ServedFunction
from iolane.model.region import Area, Piece, PlainMemory, Region, RegionIndex, memory_file
from iolane.model.registers import RegisterMap
from iolane.model.reset import ResetKind


class Presentation(StrEnum):
    """Which interrupts a device presents to the guest."""

    AUTO = "auto"
    """What its class declares."""
    MSIX = "msix"
    """MSI-X, as declared."""
    MSI = "msi"
    """MSI in place of MSI-X: for an engine that cannot unplug a function with MSI-X."""
    INTX = "intx"
    """The interrupt pin alone."""


class PciDevice(ServedFunction):
    """A device with config space and BARs.

    Subclass it and declare, as class attributes, the identity, `bar0 = Bar(...)` to `bar5`, capabilities in
    the order in which they are chained, and `intx = Intx()` for an interrupt pin. Power management and the
    PCI Express capability are there unless set to None.

    Args:
        presentation: which interrupts the guest sees.
        name: for traces and counters; by default the class's name in lower case.
    """

    vendor_id: ClassVar[int] = 0x1234
    device_id: ClassVar[int] = 0
    class_code: ClassVar[int] = 0xFF0000
    revision_id: ClassVar[int] = 0
    subsystem_vendor_id: ClassVar[int] = 0
    subsystem_id: ClassVar[int] = 0

    power: ClassVar[PowerManagement | None] = PowerManagement()
    express: ClassVar[PcieEndpoint | None] = PcieEndpoint()

    _bars: ClassVar[Mapping[int, Bar[Any]]] = {}
    _capabilities: ClassVar[Mapping[str, Capability[Any]]] = {}
    _hooks: ClassVar[tuple[tuple[str, Hook], ...]] = ()

    _brought: bytes | None = None
    """The state that `bring_back` gave it, until a guest reaches the function."""

    def __init__(
        self, *, presentation: Presentation | str = Presentation.AUTO, name: str | None = None
    ) -> None:
        super().__init__(name=name)
        self.presentation = Presentation(presentation)
        self.interrupts = Interrupts()
        self.bar_registers: dict[int, RegisterMap] = {}
        self._bound: dict[str, BoundCapability] = {}
        self._regions: list[Region | None] = [None] * 9
        declared = self._presented_capabilities()
        for name_, capability in declared.items():
            self._bound[name_] = capability.bind(self)
        self.built_bars = self._build_bars()
        self.config = self._build_config([(key, self._bound[key]) for key in declared])
        self._regions[RegionIndex.CONFIG] = self.config
        self._connect_interrupts()
        self._bind_hooks()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        bars: dict[int, Bar[Any]] = {}
        capabilities: dict[str, Capability[Any]] = {}
        for base in reversed(cls.__mro__):
            for name, item in vars(base).items():
                if isinstance(item, Bar):
                    bars[item.index] = item
                elif isinstance(item, Capability):
                    capabilities[name] = item
                elif name in capabilities:
                    del capabilities[name]
        cls._bars = bars
        cls._capabilities = capabilities
        cls._hooks = tuple(
            (name, hook)
            for base in cls.__mro__
            for name, item in vars(base).items()
            for hook in getattr(item, HOOKS_ATTRIBUTE, ())
        )
        for bar in bars.values():
            bar.check_name(cls)
        for name, hook in cls._hooks:
            if bars.get(hook.bar.index) is not hook.bar:
                raise TypeError(f"{cls.__name__}.{name} hooks {hook.bar.name}, which this class replaced")

    @classmethod
    def declares(cls, kind: type[Capability[Any]]) -> bool:
        """Whether the class declares a capability of that kind, whatever is presented of it."""
        return any(isinstance(each, kind) for each in cls._capabilities.values())

    # Building one device.

    def _presented_capabilities(self) -> dict[str, Capability[Any]]:
        wanted = self.presentation
        chosen = dict(self._capabilities)
        messages = {key: item for key, item in chosen.items() if isinstance(item, Msi | Msix)}
        if wanted is Presentation.AUTO:
            return chosen
        if wanted is Presentation.MSIX:
            if not any(isinstance(item, Msix) for item in messages.values()):
                raise IolaneError(f"{self.name} has no MSI-X", remedy="choose another presentation")
            return {key: item for key, item in chosen.items() if not isinstance(item, Msi)}
        if wanted is Presentation.INTX and not self._interrupt_pin:
            raise IolaneError(f"{self.name} has no interrupt pin", remedy="choose presentation msi or msix")
        for key in messages:
            del chosen[key]
        if wanted is Presentation.MSI:
            chosen["msi"] = self._msi_instead(list(messages.values()))
        return chosen

    def _msi_instead(self, declared: list[Msi | Msix]) -> Msi:
        if not declared:
            raise IolaneError(f"{self.name} has neither MSI nor MSI-X", remedy="choose presentation intx")
        for item in declared:
            if isinstance(item, Msi):
                return item
        return Msi(vectors=min(32, 1 << (declared[0].vectors - 1).bit_length()))

    @property
    def _interrupt_pin(self) -> int:
        declared: object = getattr(type(self), "intx", None)
        return declared.pin if isinstance(declared, Intx) else 0

    def _identity(self) -> Identity:
        return Identity(
            vendor_id=self.vendor_id,
            device_id=self.device_id,
            class_code=self.class_code,
            revision_id=self.revision_id,
            subsystem_vendor_id=self.subsystem_vendor_id,
            subsystem_id=self.subsystem_id,
            interrupt_pin=self._interrupt_pin,
        )

    def _build_config(self, capabilities: list[tuple[str, BoundCapability]]) -> ConfigSpace:
        return ConfigSpace(self._identity(), self.built_bars, capabilities, self._command_changed)

    def msix_bar(self, declaration: Msix) -> int:
        """The BAR that holds the MSI-X table: the declared one, else the first free of 4, 2, 5, 3, 1, 0."""
        if declaration.bar is not None:
            if declaration.bar not in self._bars:
                raise TypeError(
                    f"{type(self).__name__}: MSI-X names bar{declaration.bar}, which is not declared"
                )
            return declaration.bar
        taken = set(self._bars) | {
            index + 1 for index, bar in self._bars.items() if bar.kind is BarKind.MEM64
        }
        for index in (4, 2, 5, 3, 1, 0):
            if index not in taken:
                return index
        raise TypeError(
            f"{type(self).__name__}: no BAR is left for the MSI-X table; name one with Msix(bar=...)"
        )

    def _build_bars(self) -> list[BuiltBar]:
        msix = next((item for item in self._bound.values() if isinstance(item, MsixCapability)), None)
        bars = dict(self._bars)
        if msix is not None and msix.bar not in bars:
            own: Bar[RegisterMap] = Bar(RegisterMap)
            own.__set_name__(type(self), f"bar{msix.bar}")
            bars[msix.bar] = own
        return [self._build_bar(index, bar, msix) for index, bar in sorted(bars.items())]

    def _build_bar(self, index: int, bar: Bar[Any], msix: MsixCapability | None) -> BuiltBar:
        registers = self.bar_registers[index] = bar.registers()
        pieces = []
        if registers.layout.size:
            pieces.append(Piece(bar.at, registers.layout.size, registers, bar.name))
        end = 0
        if msix is not None and msix.bar == index:
            table, pba = msix.table, msix.pba
            pieces.append(Piece(msix.table_offset, table.layout.size, table, f"{bar.name}.msix"))
            pieces.append(Piece(msix.pba_offset, pba.layout.size, pba, f"{bar.name}.msix"))
            end = max(piece.offset + piece.size for piece in pieces)
        size = bar.size_for(end)
        fd, memory = memory_file(size, f"{self.name}-{bar.name}") if bar.memory else (-1, memoryview(b""))
        for part in bar.memory:
            view = memory[part.offset : part.offset + part.size]
            pieces.append(Piece(part.offset, part.size, PlainMemory(view), bar.name))
        region = Region(RegionIndex(index), size, pieces, name=bar.name, io=bar.kind is BarKind.IO)
        region.fd = fd
        region.mappable = tuple(Area(part.offset, part.size) for part in bar.memory)
        self._regions[index] = region
        return BuiltBar(index, size, bar.flags, bar.kind is BarKind.MEM64)

    def _connect_interrupts(self) -> None:
        interrupts = self.interrupts
        for capability in self._bound.values():
            if isinstance(capability, MsixCapability):
                interrupts.msix = capability
                interrupts.add_group(
                    InterruptGroup(InterruptIndex.MSIX, capability.vectors, changed=capability.connected)
                )
            elif isinstance(capability, MsiCapability):
                interrupts.msi = capability
                interrupts.add_group(
                    InterruptGroup(InterruptIndex.MSI, capability.vectors, changed=capability.connected)
                )
        if self._interrupt_pin:
            interrupts.line = IntxLine(self.config, interrupts.delivered)
            interrupts.add_group(interrupts.line.group)

    def _bind_hooks(self) -> None:
        for name, hook in reversed(self._hooks):  # the most derived class has the last word
            registers, method = self.bar_registers[hook.bar.index], getattr(self, name)
            if hook.writes:
                registers.hook_write(hook.spec, method)
            else:
                registers.hook_read(hook.spec, method)

    def bound(self, declaration: Capability[Any]) -> Any:
        """The bound capability of a declaration. Raises `AttributeError` where the presentation left it
        out.
        """
        found = self._bound.get(declaration.name)
        if found is None:
            raise AttributeError(f"{self.name} does not present {declaration.name}")
        return found

    # What a carrier uses.

    @property
    def regions(self) -> tuple[Region | None, ...]:
        """The nine regions in VFIO's order (`RegionIndex`); None for one that does not exist."""
        return tuple(self._regions)

    def _command_changed(self, command: Command) -> None:
        if command.MEMORY or command.IO:
            self._brought = None  # the guest can reach it from here on
        self.dma.enabled = bool(command.BUS_MASTER)
        self.interrupts.bus_master = bool(command.BUS_MASTER)
        if self.interrupts.line is not None:
            self.interrupts.line.update()

    def reset_registers(self, kind: ResetKind) -> None:
        """Registers, config space and interrupts take their reset values (PCI Express Base 6.0, 6.6).

        DMA maps and eventfds are the carrier's and stay.
        """
        for registers in self.bar_registers.values():
            registers.reset()
        self.config.reset(kind)
        if self.interrupts.line is not None:
            self.interrupts.line.update()

    def reset(self, kind: ResetKind = ResetKind.CONVENTIONAL) -> None:
        """Back to how it was made, once what is in flight has ended."""
        self._brought = None
        super().reset(kind)

    def reset_by_machine(self) -> None:
        """A conventional reset; what was brought back, and no guest could reach yet, is brought back again.

        A machine resets a function that is plugged in, QEMU when it makes the device and when the guest gives
        the slot power: that must not take away what the function came with.
        """
        with self.quiesced():
            brought = self._brought
            self.reset()
            if brought is not None:
                self.bring_back(brought)

    def disconnect(self) -> None:
        """The guest's side is gone: its memory and its eventfds with it. State stays."""
        super().disconnect()
        with self.lock:
            self.interrupts.disconnect_all()

    def describe(self) -> dict[str, int | float | str]:
        """Counters and what else is worth seeing, for `iolane devices`."""
        return {"interrupts": self.interrupts.delivered_count, **super().describe()}

    # Saved state.

    def storages(self) -> dict[str, memoryview]:
        """Every register storage by name: config space, each BAR's registers and memory, MSI-X table and
        PBA.
        """
        found: dict[str, memoryview] = {"config": self.config.storage}
        for index, registers in self.bar_registers.items():
            if registers.layout.size:
                found[f"bar{index}"] = registers.storage
            region = self._regions[index]
            for piece in region.pieces if region is not None else ():
                if isinstance(piece.content, PlainMemory):
                    found[f"bar{index}+{piece.offset:#x}"] = piece.content.view
        for capability in self._bound.values():
            found.update(capability.storages())
        return found

    def load_extra(self, extra: dict[str, Any]) -> Callable[[], None]:
        """What follows from the loaded storage: config space checks it and tells DMA and interrupts."""
        take = super().load_extra(extra)

        def follow() -> None:
            take()
            self.config.loaded()
            self.interrupts.flush()

        return follow

    def load(self, data: bytes | bytearray | memoryview) -> None:
        """Become what a document says, or change nothing. Raises StateError."""
        super().load(data)
        self._brought = None

    def bring_back(self, data: bytes | bytearray | memoryview) -> None:
        """Come back, into a slot that is without power, as the function that `save` told of when it had been
        unplugged; or change nothing.

        Registers of its BARs and its own state are as saved. Config space, the MSI-X table and pending
        interrupts are as after a conventional reset (PCI Express Base 6.0, 6.6.1): the guest sets up anew
        what it finds in a slot. Until the guest lets the function decode (COMMAND, 7.5.1.1.3) resets by the
        machine leave it like this; every other reset, and every one later, is as always.

        Raises:
            StateError: the document is damaged, newer, or not of this kind of device.
        """
        with self.quiesced():
            self.load(data)
            self.config.reset(ResetKind.CONVENTIONAL)
            without_power = self.save()
            self.load(without_power)  # what follows from config space follows
            self._brought = without_power

    def close(self) -> None:
        """Give back what the device holds."""
        super().close()
        for region in self._regions:
            if region is not None:
                region.close()
