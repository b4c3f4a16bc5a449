"""What the parts of a function see of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from iolane.model.interrupts import Interrupts
from iolane.model.registers import RegisterMap
from iolane.model.reset import ResetKind


class Owner(Protocol):
    """The function that BARs and capabilities belong to: a `PciDevice`."""

    interrupts: Interrupts

    @property
    def bar_registers(self) -> Mapping[int, RegisterMap]:
        """The registers of each BAR."""

    def bound(self, declaration: Any) -> Any:
        """The bound capability of a declaration."""

    def msix_bar(self, declaration: Any) -> int:
        """The BAR that holds the MSI-X table."""

    def reset(self, kind: ResetKind) -> None:
        """Reset the function."""
