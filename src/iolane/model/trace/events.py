"""What a trace tells of. Every event has a line of text and a plain object for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from iolane.model.dma import Direction, DmaFault
from iolane.model.interrupts import InterruptIndex
from iolane.model.trace.target import Target

Plain = dict[str, Any]


class TraceEvent(Protocol):
    """What a sink gets."""

    def text(self) -> str:
        """One line."""

    def plain(self) -> Plain:
        """The same as plain data."""


def _stamp(time_ns: int, device: str) -> str:
    return f"{time_ns / 1e9:12.6f} {device}"


@dataclass(slots=True)
class RegisterAccess:
    """A guest's access to a region, and what a hook sees.

    Attributes:
        time_ns: the device's time.
        region: `bar0`, `config`.
        offset: in the region.
        size: bytes, 1, 2, 4 or 8.
        value: what the guest wrote, or sees.
        register: `bar0.CONTROL`; `bar0.CONTROL[15:8]` for a part of one, `bar0.A+bar0.B` for several,
            `bar0+0x40` where there is none.
        modelled: False where the device has neither register nor memory.
        fields: the value by field; filled in from level `fields` on.
        original: the value before hooks.
        dropped: a hook said `DROP`.
    """

    time_ns: int
    device: str
    direction: Direction
    region: str
    offset: int
    size: int
    value: int
    register: str
    modelled: bool
    fields: Mapping[str, int] = field(default_factory=dict)
    described: str = ""
    original: int = 0
    dropped: bool = False

    def text(self) -> str:
        line = f"{_stamp(self.time_ns, self.device)} {self.direction:5} {self.register}"
        line += f" {'=' if self.direction is Direction.WRITE else '->'} {self.value:#0{2 * self.size + 2}x}"
        if self.described:
            line += f" {self.described}"
        if not self.modelled:
            line += f" ({self.size} bytes, not modelled)"
        if self.dropped:
            line += " (dropped by a hook)"
        elif self.value != self.original:
            line += f" (a hook changed it from {self.original:#x})"
        return line

    def plain(self) -> Plain:
        told: Plain = {
            "event": str(self.direction),
            "time_ns": self.time_ns,
            "device": self.device,
            "register": self.register,
            "region": self.region,
            "offset": self.offset,
            "size": self.size,
            "value": self.value,
        }
        if self.fields:
            told["fields"] = dict(self.fields)
        if not self.modelled:
            told["modelled"] = False
        if self.dropped:
            told["dropped"] = True
        elif self.value != self.original:
            told["original"] = self.original
        return told


@dataclass(slots=True, frozen=True)
class InterruptRaised:
    """An interrupt that reached the carrier."""

    time_ns: int
    device: str
    kind: InterruptIndex
    vector: int

    @property
    def name(self) -> str:
        """What filters see: `interrupt.MSIX[3]`."""
        return f"interrupt.{self.kind.name}[{self.vector}]"

    def text(self) -> str:
        return f"{_stamp(self.time_ns, self.device)} interrupt {self.kind.name} {self.vector}"

    def plain(self) -> Plain:
        return {
            "event": "interrupt",
            "time_ns": self.time_ns,
            "device": self.device,
            "kind": self.kind.name.lower(),
            "vector": self.vector,
        }


@dataclass(slots=True, frozen=True)
class DmaRefused:
    """An access to memory that was refused. Filters see `dma.fault`."""

    time_ns: int
    device: str
    fault: DmaFault
    name: str = "dma.fault"

    def text(self) -> str:
        fault = self.fault
        what = f"{fault.direction} of {fault.length} bytes at {fault.iova:#x}: {fault.reason}"
        return f"{_stamp(self.time_ns, self.device)} dma fault, {what}"

    def plain(self) -> Plain:
        return {
            "event": "dma_fault",
            "time_ns": self.time_ns,
            "device": self.device,
            "direction": str(self.fault.direction),
            "iova": self.fault.iova,
            "length": self.fault.length,
            "reason": self.fault.reason.name.lower(),
        }


@dataclass(slots=True, frozen=True)
class DeviceFailed:
    """An exception in the device's code. Filters see `device.error`."""

    time_ns: int
    device: str
    where: str
    error: str
    name: str = "device.error"

    def text(self) -> str:
        return f"{_stamp(self.time_ns, self.device)} error in {self.where}: {self.error}"

    def plain(self) -> Plain:
        return {
            "event": "error",
            "time_ns": self.time_ns,
            "device": self.device,
            "where": self.where,
            "error": self.error,
        }


@dataclass(slots=True, frozen=True)
class GuestSpins:
    """The guest reads one register over and over and gets the same value."""

    time_ns: int
    device: str
    target: Target
    value: int
    reads: int
    within_ns: int

    @property
    def name(self) -> str:
        """The register."""
        return self.target.name

    def text(self) -> str:
        described = self.target.describe(self.value)
        value = f"{self.value:#0{2 * self.target.size + 2}x}{' ' + described if described else ''}"
        return (
            f"{_stamp(self.time_ns, self.device)} notice: the guest spins on {self.name}:"
            f" {self.reads} reads in {self.within_ns / 1e6:.1f} ms, always {value}"
        )

    def plain(self) -> Plain:
        return {
            "event": "spin",
            "time_ns": self.time_ns,
            "device": self.device,
            "register": self.name,
            "value": self.value,
            "reads": self.reads,
            "within_ns": self.within_ns,
        }
