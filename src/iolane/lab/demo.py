"""`iolane lab demo`: the three lanes side by side, on an emulated host with an IOMMU, each claim checked."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import msgspec

from iolane.engines.qemu.cache import Report
from iolane.lab.demo_in_lab import Check, LaneSeen
from iolane.lab.hardware import Kind, LabDevice
from iolane.lab.lines import Lines
from iolane.lab.machine import Lab, LabConfig

SHARED = "0000:00:1f.2"
"""q35's AHCI controller, which shares its group with the LPC bridge and the SMBus controller."""
DISK = "nvme0"
DISK_BYTES = 32 << 20
LAB_MIB = 2560
SECONDS = 1800.0


class LabDemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """All that was seen."""

    boot_seconds: float
    seconds: float
    lanes: list[LaneSeen]
    checks: list[Check]
    ok: bool


def run_lab_demo(report: Report, show: Callable[[Check | LaneSeen], None]) -> LabDemoResult:
    """Boot, work, compare; `show` gets each check and each lane as it comes. Leaves nothing behind."""
    started = time.monotonic()
    devices = [LabDevice(Kind.NVME, id=DISK, size=DISK_BYTES)]
    with Lab(LabConfig(devices=devices, memory_mib=LAB_MIB), report=report) as lab:
        heard = _Heard(show)
        command = [sys.executable, "-m", "iolane.lab.demo_in_lab", str(lab.address(DISK)), SHARED]
        lab.run(command, timeout=SECONDS, on_output=Lines(heard.take, report).take).check()
        blocked = lab.iommu_trace()
        heard.note(Check("the IOMMU had nothing to block", not blocked, f"{len(blocked)} faults"))
        return LabDemoResult(
            boot_seconds=lab.boot_seconds,
            seconds=time.monotonic() - started,
            lanes=heard.lanes,
            checks=heard.checks,
            ok=all(check.ok for check in heard.checks) and bool(heard.lanes),
        )


class _Heard:
    """What the program in the lab has said."""

    def __init__(self, show: Callable[[Check | LaneSeen], None]) -> None:
        self._show = show
        self.lanes: list[LaneSeen] = []
        self.checks: list[Check] = []

    def take(self, line: bytes) -> None:
        """A line of JSON."""
        self.note(msgspec.json.decode(line, type=Check | LaneSeen))

    def note(self, message: Check | LaneSeen) -> None:
        """Keep it and show it."""
        if isinstance(message, Check):
            self.checks.append(message)
        else:
            self.lanes.append(message)
        self._show(message)
