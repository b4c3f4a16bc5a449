"""What the queues did, for `iolane devices`."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from iolane.devices.nvme.commands import Command
from iolane.devices.nvme.spec import IoOpcode

if TYPE_CHECKING:
    from iolane.devices.nvme.controller import Nvme

LATENCIES_KEPT = 2048


class QueueAccount:
    """One submission queue's commands, bytes and latest latencies (nanoseconds from fetch to completion)."""

    __slots__ = ("bytes_read", "bytes_written", "commands", "errors", "latencies", "total_ns")

    def __init__(self) -> None:
        self.commands = 0
        self.errors = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self.total_ns = 0
        self.latencies: deque[int] = deque(maxlen=LATENCIES_KEPT)

    def snapshot(self, prefix: str) -> dict[str, int | float | str]:
        """Numbers by name; latencies in microseconds, percentiles of the latest commands."""
        found: dict[str, int | float | str] = {
            f"{prefix}commands": self.commands,
            f"{prefix}errors": self.errors,
            f"{prefix}bytes_read": self.bytes_read,
            f"{prefix}bytes_written": self.bytes_written,
        }
        if self.latencies:
            ordered = sorted(self.latencies)
            done = max(self.commands - self.errors, 1)
            found[f"{prefix}latency_mean_us"] = round(self.total_ns / done / 1000, 1)
            found[f"{prefix}latency_p50_us"] = round(ordered[len(ordered) // 2] / 1000, 1)
            found[f"{prefix}latency_p99_us"] = round(ordered[len(ordered) * 99 // 100] / 1000, 1)
        return found


class Accounts:
    """Counts by queue, and into the SMART log."""

    def __init__(self, controller: Nvme) -> None:
        self.controller = controller
        self.queues: dict[int, QueueAccount] = {}
        self.fatal = ""
        """Why CSTS.CFS was set last."""

    def of(self, sqid: int) -> QueueAccount:
        """The account of a queue; identifiers are bounded by the number of queues."""
        account = self.queues.get(sqid)
        if account is None:
            account = self.queues[sqid] = QueueAccount()
        return account

    def completed(self, command: Command, now: int) -> None:
        """A command succeeded."""
        account = self.of(command.sqid)
        account.commands += 1
        account.total_ns += now - command.started
        account.latencies.append(now - command.started)
        if not command.sqid:
            return
        health, opcode = self.controller.state.health, command.entry.opcode
        if opcode in (IoOpcode.READ, IoOpcode.COMPARE):
            length = self._length(command)
            account.bytes_read += length
            health.bytes_read += length
            health.reads += 1
        elif opcode == IoOpcode.WRITE:
            length = self._length(command)
            account.bytes_written += length
            health.bytes_written += length
            health.writes += 1

    def failed(self, command: Command) -> None:
        """A command failed."""
        account = self.of(command.sqid)
        account.commands += 1
        account.errors += 1

    def _length(self, command: Command) -> int:
        namespace = self.controller.namespaces.get(command.entry.nsid)
        return 0 if namespace is None else ((command.entry.cdw12 & 0xFFFF) + 1) * namespace.lba_size

    def snapshot(self) -> dict[str, int | float | str]:
        """All of it, the I/O queues together first."""
        total = QueueAccount()
        for sqid, account in self.queues.items():
            if sqid:
                total.commands += account.commands
                total.errors += account.errors
                total.bytes_read += account.bytes_read
                total.bytes_written += account.bytes_written
                total.total_ns += account.total_ns
                total.latencies.extend(account.latencies)
        found = total.snapshot("io_")
        for sqid, account in sorted(self.queues.items()):
            found |= account.snapshot(f"queue{sqid}_" if sqid else "admin_")
        found["interrupts_raised"] = self.controller.signals.raised
        if self.fatal:
            found["fatal"] = self.fatal
        return found
