"""IOMMU faults watched: whose they are, how many of each, and telling about new ones."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import Counter, deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec

from iolane.errors import IolaneError
from iolane.host.faults import Fault, FaultReader
from iolane.host.inventory import addresses
from iolane.host.kmsg import KernelLog
from iolane.host.sysfs import Host
from iolane.model.pci.pcie_id import PcieId

HISTORY = 256
"""Faults that are remembered; older ones are only counted."""
_SOURCES = 1024
"""Different faults that are counted apart: a hostile function may have as many requester ids as it likes."""

_log = logging.getLogger("iolane.host")
MachineOf = Callable[[PcieId], str | None]


class FaultCount(msgspec.Struct, frozen=True):
    """How often one function met one reason."""

    function: str
    machine: str | None
    kind: str
    reason: str
    count: int


class FaultReport(msgspec.Struct, frozen=True):
    """All that is known now."""

    faults: list[Fault]
    """The latest, oldest first."""
    counts: list[FaultCount]
    suppressed: int
    """Faults that the kernel's rate limit held back; it does not say whose."""
    overflows: int
    """How often the IOMMU itself lost faults."""
    lost: int
    """How often the kernel's log was overwritten before we could read it."""


class FaultLedger:
    """Attributes, counts and remembers faults. Not for several threads at once."""

    def __init__(
        self, host: Host, *, machine_of: MachineOf = lambda address: None, history: int = HISTORY
    ) -> None:
        self._host, self._machine_of = host, machine_of
        self._reader = FaultReader()
        self._counts: Counter[tuple[str, str | None, str, str]] = Counter()
        self.faults: deque[Fault] = deque(maxlen=history)
        self.suppressed = self.overflows = 0

    def take_in(self, log: KernelLog) -> list[Fault]:
        """Read what the log has now; the new faults."""
        new: list[Fault] = []
        while (record := log.read()) is not None:
            for found in self._reader.read(record):
                if isinstance(found, Fault):
                    new.append(self._attribute(found))
                else:
                    self.suppressed += found.suppressed
                    self.overflows += found.overflow
        for fault in new:
            key = (fault.function or fault.requester, fault.machine, str(fault.kind), fault.reason)
            if key not in self._counts and len(self._counts) >= _SOURCES:
                key = ("others", None, str(fault.kind), "more functions and reasons than are counted apart")
            self._counts[key] += 1
        self.faults.extend(new)
        return new

    def report(self, lost: int = 0) -> FaultReport:
        """What was found so far."""
        counts = [FaultCount(*key, count) for key, count in self._counts.most_common()]
        return FaultReport(list(self.faults), counts, self.suppressed, self.overflows, lost)

    def _attribute(self, fault: Fault) -> Fault:
        """VT-d's messages have no segment: it is found among the functions there are."""
        try:
            requester = PcieId.from_string(fault.requester)
        except IolaneError:
            return fault
        with_segment = fault.requester.count(":") == 2
        known = [
            each
            for each in addresses(self._host)
            if each == requester or (not with_segment and each.routing_id == requester.routing_id)
        ]
        if len(known) != 1:  # of none (an alias, phantom functions, unplugged), or nobody can say of which
            return fault
        machine = self._machine_of(known[0])
        return msgspec.structs.replace(fault, function=str(known[0]), machine=machine)


def collect(host: Host, *, machine_of: MachineOf = lambda address: None) -> FaultReport:
    """The faults in the kernel's log now, back to where it begins.

    Raises:
        IolaneError: the log can't be read.
    """
    ledger = FaultLedger(host, machine_of=machine_of)
    with KernelLog.open(host) as log:
        ledger.take_in(log)
        return ledger.report(log.lost)


class FaultMonitor:
    """A thread that reads the kernel's log until `stop`; a context manager.

    Args:
        notify: called in the monitor's thread with each new fault.
        stop_machine: called with the machine's name and its first fault, once a machine.
        log: instead of the host's from now on.
    """

    def __init__(
        self,
        host: Host | None = None,
        *,
        notify: Callable[[Fault], None] | None = None,
        machine_of: MachineOf = lambda address: None,
        stop_machine: Callable[[str, Fault], None] | None = None,
        history: int = HISTORY,
        log: KernelLog | None = None,
    ) -> None:
        self._host = host or Host()
        self._notify, self._stop_machine = notify, stop_machine
        self._ledger = FaultLedger(self._host, machine_of=machine_of, history=history)
        self._kernel_log = log
        self._stopped: set[str] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake = -1

    def start(self) -> None:
        """Begin. Faults from before are not reported.

        Raises:
            IolaneError: the log can't be read.
        """
        if self._kernel_log is None:
            self._kernel_log = KernelLog.open(self._host, from_now=True)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="iommu faults", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; faults that are in the log by now are still reported."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
        if thread is not threading.current_thread():  # a callback may stop its own monitor
            thread.join()

    def report(self) -> FaultReport:
        """What was found since the start; from any thread."""
        with self._lock:
            return self._ledger.report(0 if self._kernel_log is None else self._kernel_log.lost)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            self._watch()
        except OSError:
            _log.exception("the kernel's log can't be read any more; IOMMU faults are not seen now")
        finally:
            self._close()

    def _watch(self) -> None:
        assert self._kernel_log is not None
        log = self._kernel_log.descriptor
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(log, select.POLLIN)
        ended = False
        while not ended:
            ready = dict(poll.poll())
            gone = select.POLLHUP | select.POLLNVAL
            ended = self._wake in ready or bool(ready.get(log, 0) & gone)
            with self._lock:
                new = self._ledger.take_in(self._kernel_log)
            for fault in new:
                self._tell(fault)

    def _tell(self, fault: Fault) -> None:
        """A callback's mistake must not end the watch."""
        try:
            if self._notify is not None:
                self._notify(fault)
            machine = fault.machine
            if self._stop_machine is not None and machine is not None and machine not in self._stopped:
                self._stopped.add(machine)
                self._stop_machine(machine, fault)
        except Exception:
            _log.exception("telling about an IOMMU fault failed: %s", fault)

    def _close(self) -> None:
        with self._lock:
            assert self._kernel_log is not None
            self._kernel_log.close()
            os.close(self._wake)
            self._wake = -1
