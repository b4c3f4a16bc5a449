"""A device that this process serves, as the control socket and the reports see it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from iolane.carriers.control import DeviceReport, SetTrace, Sink
from iolane.carriers.vfio_user import EventKind, VfioUserServer
from iolane.errors import IolaneError
from iolane.model.pci.served import ServedFunction
from iolane.model.region import RegionIndex
from iolane.model.reset import ResetKind
from iolane.model.trace import GuestSpins, JsonSink, TextSink, TraceEvent, TraceLevel, Tracer, unmodelled
from iolane.operations.tracing import TraceRequest

FAULTS_SHOWN = 5
UNMODELLED_SHOWN = 32
ACCESSES_SHOWN = 512
TROUBLE = (EventKind.FAILED, EventKind.WARNING)
CLEANUP_S = 5.0
"""How long it may take to clean up after a client that has just left."""


class ServedDevice:
    """A device behind a vfio-user server of this process."""

    def __init__(
        self,
        name: str,
        device: ServedFunction,
        server: VfioUserServer,
        socket: Path,
        tracer: Tracer | None = None,
    ) -> None:
        self.name = name
        self.device = device
        self.server = server
        self.socket = socket
        self.tracer = Tracer(device) if tracer is None else tracer

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
                trace=str(self.tracer.level),
                counters=self._counters(),
                statistics={**device.counters.snapshot(), **self._statistics()},
                unmodelled=self._unmodelled(),
                faults=[str(fault) for fault in faults],
                accesses={
                    count.name: (count.reads, count.writes)
                    for count in self.tracer.counters()[:ACCESSES_SHOWN]
                },
                spins=[_spin(spin) for spin in self.tracer.spins],
                problem=self._problem(),
                running=self.server.running,
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

    def _statistics(self) -> dict[str, int | float | str]:
        """What the device itself has to say; its code may fail, the report does not."""
        try:
            return self.device.statistics()
        except Exception as error:
            self.device.report_error("statistics", error)
            return {}

    def _unmodelled(self) -> list[str]:
        """The most frequent first; without config space, which every guest looks through."""
        config = self.device.regions[RegionIndex.CONFIG]
        found = [item for item in unmodelled(self.device) if config is None or item.region != config.name]
        return [str(item) for item in found[:UNMODELLED_SHOWN]]

    def set_trace(self, request: SetTrace, sink: Sink | None) -> Callable[[], None]:
        """Set its trace level; returns the call that restores the one before.

        With a sink, the trace is beside whatever else is set; without, it stays, and events go to stderr.
        """
        level = TraceLevel.parse(request.level)
        if sink is None:
            self.tracer.set(
                level,
                registers=request.filter,
                direction=request.direction,
                sink=(JsonSink if request.json else TextSink)(sys.stderr),
            )
            return lambda: None

        def pass_on(event: TraceEvent) -> None:
            sink(event.plain() if request.json else event.text())

        return self.tracer.follow(level, registers=request.filter, direction=request.direction, sink=pass_on)

    def trace_to_stderr(self, request: TraceRequest) -> Callable[[], None]:
        """Trace it from now on; returns the call that ends it, and then shows what was counted."""
        level = TraceLevel.parse(request.level)
        self.tracer.set(level, registers=request.registers, sink=TextSink(sys.stderr))

        def end() -> None:
            self.tracer.off()
            if level is TraceLevel.COUNTERS:
                for count in self.tracer.counters(request.registers):
                    print(
                        f"{self.name} {count.name}: {count.reads} reads, {count.writes} writes",
                        file=sys.stderr,
                    )

        return end

    def reset(self, kind: Literal["conventional", "flr"]) -> None:
        """Reset it, as the carrier's reset or a function-level reset does."""
        with self.device.lock:
            self.device.reset(ResetKind.FLR if kind == "flr" else ResetKind.CONVENTIONAL)

    def save(self) -> bytes:
        """Its state, as `state=` takes it. Refused while a guest has the device."""
        if not self.device.migratable:
            raise IolaneError(f"{self.name} is hardware: its state can't be saved")
        if not self.server.wait_idle(CLEANUP_S):
            raise IolaneError(f"{self.name} is not saved: a guest has it", remedy="unplug it first")
        return self.device.save()


def _spin(notice: GuestSpins) -> str:
    return notice.text().partition("notice: ")[2]
