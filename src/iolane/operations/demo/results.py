"""What the demonstration has seen."""

from __future__ import annotations

from collections.abc import Mapping

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


class Events(msgspec.Struct, frozen=True):
    """What one operation cost, on the average."""

    traps: float
    """Accesses of the guest that came to this process."""
    kicks: float
    interrupts: float


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of a device, and what must hold."""

    driver: str
    throughput: Throughput
    each: Events
    checks: list[Check]


class DeviceRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one device did."""

    name: str
    type: str
    lane: str
    carrier: str
    driver: str
    """As the guest's sysfs names it; empty when none is bound."""
    interrupt_mode: str
    interrupts: int
    traps: int
    kicks: int
    each: Events
    """For one operation of those whose latency was taken."""
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


def between(before: Mapping[str, int], after: Mapping[str, int], count: int) -> Events:
    """What one of `count` operations cost."""
    traps, kicks, interrupts = (
        (after.get(name, 0) - before.get(name, 0)) / count for name in ("traps", "kicks", "interrupts")
    )
    return Events(traps, kicks, interrupts)
