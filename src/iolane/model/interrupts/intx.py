"""INTx: a level, not an event (PCI Local Bus 3.0, 2.2.6; PCI Express Base, 6.1.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from iolane.model.interrupts.group import InterruptGroup, InterruptIndex


class LevelRegisters(Protocol):
    """Where the level is kept: STATUS.INTERRUPT and COMMAND.INTX_DISABLE of config space."""

    interrupt_status: bool

    @property
    def intx_disabled(self) -> bool: ...


class IntxLine:
    """A function's interrupt pin. The level lives in STATUS.INTERRUPT, so it is saved with config space.

    A carrier gets an event when the level is asserted, and with it the line is masked; when the carrier
    unmasks and the level still stands, it is told again (VFIO's automasked interrupt).
    """

    def __init__(self, registers: LevelRegisters, delivered: Callable[[InterruptIndex, int], None]) -> None:
        self._delivered = delivered
        self._registers = registers
        self.changed: Callable[[bool], None] | None = None
        """Told of each change of the wire, for carriers that hold a line instead of an eventfd."""
        self._wire = False
        self.group = InterruptGroup(InterruptIndex.INTX, 1, automasked=True, changed=lambda _: self.update())

    @property
    def level(self) -> bool:
        """Whether the device asserts the line (STATUS.INTERRUPT)."""
        return self._registers.interrupt_status

    def set_level(self, level: bool) -> None:
        """The device asserts or deasserts its interrupt."""
        self._registers.interrupt_status = level
        self.update()

    def update(self) -> None:
        """Bring the wire into line with the level and COMMAND.INTX_DISABLE."""
        wire = self.level and not self._registers.intx_disabled
        if wire != self._wire:
            self._wire = wire
            if self.changed is not None:
                self.changed(wire)
        if wire and self.group.ready(0) and self.group.signal(0):
            self._delivered(InterruptIndex.INTX, 0)
