"""Declaration of a function's interrupt pin."""

from __future__ import annotations

from typing import Self, overload

from iolane.model.interrupts import IntxLine
from iolane.model.pci.owner import Owner


class Intx:
    """An interrupt pin (PCI Express Base 6.0, 7.5.1.1.13). On a device the attribute is its `IntxLine`.

    Args:
        pin: 1 for INTA to 4 for INTD.
    """

    def __init__(self, pin: int = 1) -> None:
        if not 1 <= pin <= 4:
            raise TypeError("an interrupt pin is 1 (INTA) to 4 (INTD)")
        self.pin = pin

    @overload
    def __get__(self, device: None, owner: type) -> Self: ...
    @overload
    def __get__(self, device: Owner, owner: type) -> IntxLine: ...
    def __get__(self, device: Owner | None, owner: type) -> Self | IntxLine:
        return self if device is None else device.interrupts.intx
