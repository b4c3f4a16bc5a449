"""A device that this process serves, as the control socket and the reports see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from iolane.carriers.control import DeviceReport, SetTrace, Sink
from iolane.carriers.vfio_user import EventKind, VfioUserServer
from iolane.model.pci import PciDevice
from iolane.model.region import RegionIndex
from iolane.model.reset import ResetKind
from iolane.operations.tracing import TraceRequest

FAULTS_SHOWN = 5
UNMODELLED_SHOWN = 32
TROUBLE = (EventKind.FAILED, EventKind.WARNING)


class ServedDevice:
    """A device behind a vfio-user server of this process."""

    def __init__(self, name: str, device: PciDevice, server: VfioUserServer, socket: Path) -> None:
        self.name = name
        self.device = device
        self.server = server
        self.socket = socket

    @property
    def type(self) -> str:
        """The name of its class."""
        return type(self.device).__name__

    def report(self) -> DeviceReport:
        """Its state and counters now."""
        device = self.device
        with device.lock:
            faults = list(device.dma.faults)[-FAULTS_SHOWN:]
            return DeviceReport(
                name=self.name,
                type=self.type,
                endpoint=str(self.socket),
                connected=self.server.connected,
                interrupt_mode=device.interrupts.mode.value,
                trace="off",
                counters=self._counters(),
                statistics={**device.counters.snapshot(), **device.statistics()},
                unmodelled=self._unmodelled(),
                faults=[str(fault) for fault in faults],
                problem=self._problem(),
            )

    def _problem(self) -> str | None:
        """The last thing that went wrong with its server."""
        if not self.server.running:
            return "its server has ended"
        wrong = [event.text for event in self.server.events if event.kind in TROUBLE]
        return wrong[-1] if wrong else None

    def _counters(self) -> dict[str, int]:
        """What every device has, whatever it is."""
        seen = self.server.statistics
        device = self.device
        return {
            "traps": seen.reads + seen.writes,
            "reads": seen.reads,
            "writes": seen.writes,
            "interrupts": device.interrupts.delivered_count,
            "dma_bytes_read": device.dma.bytes_read,
            "dma_bytes_written": device.dma.bytes_written,
            "dma_faults": device.dma.fault_count,
            "rejected": sum(seen.rejections.values()),
            "errors": device.error_count,
        }

    def _unmodelled(self) -> list[str]:
        """`read bar0+0x10 (4 bytes) 3 times`, the most frequent first."""
        found = [
            (count, f"{direction} {region.name}+{offset:#x} ({size} bytes) {count} times")
            for region in self.device.regions
            if region is not None and region.index != RegionIndex.CONFIG
            for (direction, offset, size), count in region.unmodelled.items()
        ]
        return [text for _, text in sorted(found, reverse=True)[:UNMODELLED_SHOWN]]

    def set_trace(self, request: SetTrace, sink: Sink | None) -> Callable[[], None]:
        """Set its trace level; returns the call that restores the one before."""
        raise NotImplementedError

    def trace_to_stderr(self, request: TraceRequest) -> Callable[[], None]:
        """Trace it from now on; returns the call that ends it."""
        raise NotImplementedError

    def reset(self, kind: Literal["conventional", "flr"]) -> None:
        """Reset it, as the carrier's reset or a function-level reset does."""
        with self.device.lock:
            self.device.reset(ResetKind.FLR if kind == "flr" else ResetKind.CONVENTIONAL)
