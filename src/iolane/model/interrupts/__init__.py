"""Interrupts: INTx as a level, MSI and MSI-X as vectors, delivered by eventfd without a thread between."""

from iolane.model.interrupts.group import InterruptGroup, InterruptIndex
from iolane.model.interrupts.interrupts import (
    InterruptMode,
    Interrupts,
    MsiMessage,
    TableOwner,
    VectorSource,
)
from iolane.model.interrupts.intx import IntxLine

__all__ = [
    "InterruptGroup",
    "InterruptIndex",
    "InterruptMode",
    "Interrupts",
    "IntxLine",
    "MsiMessage",
    "TableOwner",
    "VectorSource",
]
