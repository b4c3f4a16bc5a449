"""A virtio device that this process serves by vhost-user, as the control socket and the reports see it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from iolane.carriers.control import DeviceReport, SetTrace, Sink
from iolane.carriers.vhost_user import EventKind, VhostUserServer
from iolane.errors import IolaneError
from iolane.model.virtio import VirtioDevice
from iolane.operations.tracing import TraceRequest

FAULTS_SHOWN = 5
TROUBLE = (EventKind.FAILED, EventKind.WARNING)
PER_QUEUE = {
    "kicks": "kicks",
    "requests": "chains",
    "interrupts": "interrupts",
    "interrupts_suppressed": "interrupts_suppressed",
    "slow": "slow",
    "dma_bytes_read": "bytes_read",
    "dma_bytes_written": "bytes_written",
}
"""Counter of a device -> the counter of its queues that adds up to it."""


class ServedVirtio:
    """A device behind a vhost-user server of this process. It has queues, and no registers that trap."""

    def __init__(self, name: str, device: VirtioDevice, server: VhostUserServer, socket: Path) -> None:
        self.name = name
        self.device = device
        self.server = server
        self.socket = socket

    @property
    def type(self) -> str:
        """What kind of device it is: the name of its class, where that has no other."""
        return self.device.state_kind

    def report(self) -> DeviceReport:
        """Its state and counters now."""
        device = self.device
        with device.lock:
            statistics = self._statistics()
            return DeviceReport(
                name=self.name,
                type=self.type,
                endpoint=str(self.socket),
                connected=self.server.connected,
                interrupt_mode="eventfd",
                trace="off",
                counters=self._counters(statistics),
                statistics={**device.counters.snapshot(), **self._carrier_statistics(), **statistics},
                faults=[str(fault) for fault in list(device.dma.faults)[-FAULTS_SHOWN:]],
                problem=self._problem(),
                running=self.server.running,
            )

    def _problem(self) -> str | None:
        """The last thing that went wrong with its server."""
        if not self.server.running:
            return "its server has ended"
        wrong = [event.text for event in self.server.events if event.kind in TROUBLE]
        return wrong[-1] if wrong else None

    def _counters(self, statistics: dict[str, int | float | str]) -> dict[str, int]:
        """What every device has; no access of the guest traps to this process."""
        device, seen = self.device, self.server.statistics
        totals = {
            shown: sum(_number(statistics.get(f"{queue.name}.{counted}")) for queue in device.queues)
            for shown, counted in PER_QUEUE.items()
        }
        broken = sum(queue.rejections for queue in device.queues)
        return {
            "traps": 0,
            **totals,
            "dma_faults": device.dma.fault_count,
            "rejected": broken + sum(seen.rejections.values()),
            "errors": device.error_count,
        }

    def _carrier_statistics(self) -> dict[str, int | float | str]:
        return {f"vhost_user.{name}": count for name, count in self.server.statistics.as_dict().items()}

    def _statistics(self) -> dict[str, int | float | str]:
        """What the device itself has to say; its code may fail, the report does not."""
        try:
            return self.device.statistics()
        except Exception as error:
            self.device.report_error("statistics", error)
            return {}

    def set_trace(self, request: SetTrace, sink: Sink | None) -> Callable[[], None]:
        """Refused: there is no register to trace."""
        raise IolaneError(self._no_registers(), remedy="its queues are counted in `iolane devices`")

    def trace_to_stderr(self, request: TraceRequest) -> Callable[[], None]:
        """Says that there is nothing to trace; other devices of the process are traced all the same."""
        print(
            f"iolane: {self._no_registers()} (its queues are counted in `iolane devices`)",
            file=sys.stderr,
        )
        return lambda: None

    def _no_registers(self) -> str:
        return f"{self.name} can't be traced: carried by vhost-user it has no registers here"

    def reset(self, kind: Literal["conventional", "flr"]) -> None:
        """Refused while a front end is there, whose rings would be pulled away from under the driver."""
        if self.server.connected:
            raise IolaneError(
                f"{self.name} is not reset: with vhost-user only the front end resets a device",
                remedy="reset the guest, or unbind and bind its driver there",
            )
        self.device.reset()

    def save(self) -> bytes:
        """Refused: QEMU has what there is to save of it."""
        raise IolaneError(
            f"{self.name} is not saved: with vhost-user the front end has its state",
            remedy="migrate the machine, it comes along",
        )


def _number(value: int | float | str | None) -> int:
    return value if isinstance(value, int) else 0
