"""All interrupts of a function: which kind is in use, and the way from `raise_vector` to the carrier."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, Protocol

from iolane.model.interrupts.group import InterruptGroup, InterruptIndex
from iolane.model.interrupts.intx import IntxLine


class InterruptMode(Enum):
    """What the guest enabled. At most one kind is in use at a time (PCI Express Base, 6.1.4)."""

    NONE = "none"
    INTX = "intx"
    MSI = "msi"
    MSIX = "msix"


class TableOwner(Enum):
    """Who applies the guest's MSI and MSI-X enables and masks."""

    MODEL = "model"
    """This library: the guest's table is in our registers."""
    CARRIER = "carrier"
    """The peer (vfio-user: the client keeps the table): an eventfd that is connected may be signalled."""


class MsiMessage(NamedTuple):
    """A message-signalled interrupt: the memory write that it is."""

    address: int
    data: int
    vector: int


class VectorSource(Protocol):
    """MSI or MSI-X of a function."""

    @property
    def enabled(self) -> bool: ...

    def raise_vector(self, vector: int) -> None: ...

    def flush(self) -> None: ...


class Interrupts:
    """The interrupts of one function.

    Attributes:
        table_owner: set by the carrier.
        deliver: takes MSI messages for a carrier that owns no eventfds (in-process, MODEL owner only).
        observers: called with (kind, vector) at each delivered interrupt; for traces.
        delivered_count: interrupts that reached the carrier.
    """

    def __init__(self) -> None:
        self.msix: VectorSource | None = None
        self.msi: VectorSource | None = None
        self.line: IntxLine | None = None
        self.deliver: Callable[[MsiMessage], None] | None = None
        self.observers: list[Callable[[InterruptIndex, int], None]] = []
        self.delivered_count = 0
        self._owner = TableOwner.MODEL
        self._bus_master = False
        self._groups: dict[InterruptIndex, InterruptGroup] = {}

    def add_group(self, group: InterruptGroup) -> None:
        """Make a group known to the carrier."""
        self._groups[group.index] = group

    def group(self, index: InterruptIndex) -> InterruptGroup:
        """The group of `index`; one with no vectors where the function has no such interrupt."""
        found = self._groups.get(index)
        if found is None:
            found = self._groups[index] = InterruptGroup(index, 0, changed=lambda _: None)
        return found

    @property
    def table_owner(self) -> TableOwner:
        """Who owns enables and masks."""
        return self._owner

    @table_owner.setter
    def table_owner(self, owner: TableOwner) -> None:
        self._owner = owner
        self.flush()

    @property
    def bus_master(self) -> bool:
        """COMMAND.BUS_MASTER: without it a function sends no messages (PCI Express Base, 7.5.1.1.3)."""
        return self._bus_master

    @bus_master.setter
    def bus_master(self, enabled: bool) -> None:
        self._bus_master = enabled
        if enabled:
            self.flush()

    @property
    def intx(self) -> IntxLine:
        """The interrupt pin. Raises `AttributeError` where the function has none."""
        if self.line is None:
            raise AttributeError("this function has no interrupt pin: declare `intx = Intx()`")
        return self.line

    @property
    def mode(self) -> InterruptMode:
        """The kind that is in use now."""
        if self.msix is not None and (self.msix.enabled or self.group(InterruptIndex.MSIX).connected):
            return InterruptMode.MSIX
        if self.msi is not None and (self.msi.enabled or self.group(InterruptIndex.MSI).connected):
            return InterruptMode.MSI
        return InterruptMode.NONE if self.line is None else InterruptMode.INTX

    def raise_vector(self, vector: int) -> None:
        """Raise `vector` by the kind in use.

        While it cannot be delivered (masked, not enabled, Bus Master off) it stays pending and is delivered
        exactly once when it can. In INTx mode the line is asserted; the device deasserts it with
        `intx.set_level(False)`.
        """
        mode = self.mode
        if mode is InterruptMode.INTX:
            self.intx.set_level(True)
        elif mode is InterruptMode.MSI and self.msi is not None:
            self.msi.raise_vector(vector)
        elif self.msix is not None:
            self.msix.raise_vector(vector)
        elif self.msi is not None:
            self.msi.raise_vector(vector)

    def send(self, index: InterruptIndex, message: MsiMessage) -> None:
        """Deliver a message: by the carrier's eventfd, else by `deliver`."""
        if self.group(index).signal(message.vector):
            self.delivered(index, message.vector)
        elif self.deliver is not None:
            self.deliver(message)
            self.delivered(index, message.vector)

    def sendable(self, index: InterruptIndex, vector: int, *, enabled: bool, masked: bool) -> bool:
        """Whether a message can be delivered now. `enabled` and `masked` are what the guest wrote in our
        registers.
        """
        if not self._bus_master:
            return False
        group = self.group(index)
        if self._owner is TableOwner.CARRIER:
            return group.ready(vector)
        if not enabled or masked or group.is_masked(vector):
            return False
        return self.deliver is not None or group.ready(vector)

    def delivered(self, index: InterruptIndex, vector: int) -> None:
        """Count an interrupt that reached the carrier and tell the observers."""
        self.delivered_count += 1
        for observer in self.observers:
            observer(index, vector)

    def flush(self) -> None:
        """Deliver what became deliverable."""
        for source in (self.msix, self.msi):
            if source is not None:
                source.flush()
        if self.line is not None:
            self.line.update()

    def disconnect_all(self) -> None:
        """Close every eventfd of the carrier."""
        for group in self._groups.values():
            group.disconnect_all()
