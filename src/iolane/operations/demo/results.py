"""What the demonstration has seen."""

from __future__ import annotations

import msgspec


class Check(msgspec.Struct, frozen=True):
    """One thing that must hold."""

    what: str
    ok: bool
    detail: str


class Throughput(msgspec.Struct, frozen=True):
    """Work of one device, as timed where it was done."""

    to_device: float
    """Bytes a second."""
    from_device: float
    latency: float
    """Seconds."""
    latency_of: str


class DeviceRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one device did."""

    name: str
    type: str
    driver: str
    """As the guest's sysfs names it; empty when none is bound."""
    interrupt_mode: str
    interrupts: int
    traps: int
    dma_bytes: int
    throughput: Throughput


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """All that was seen."""

    kernel: str
    engine: str
    boot_seconds: float
    seconds: float
    devices: list[DeviceRow]
    checks: list[Check]
    ok: bool
    """Whether every check held."""


def compare(what: str, here: str, guest: str) -> Check:
    """Whether a checksum computed here equals the guest's."""
    if here == guest:
        return Check(what, True, f"sha256 {here[:16]}... here and in the guest")
    return Check(what, False, f"sha256 {here} here, {guest or 'none'} in the guest")
