"""The IOMMU watched while a machine has functions of this host."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from iolane.engines.machine import EngineMachine
from iolane.engines.qemu.cache import Report
from iolane.errors import IolaneError
from iolane.host.fault_monitor import FaultMonitor
from iolane.host.faults import Fault
from iolane.model.pci import PcieId


class StoppedByFaultError(IolaneError):
    """The machine was ended because the IOMMU refused something of its functions, as was asked for."""


class FaultTeller:
    """Says which requests of a machine's functions were refused: of any number the first, second, fourth ...,
    since a guest may cause as many as it likes.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self.count = 0

    def tell(self, fault: Fault) -> None:
        """Take a fault; those of other functions are not ours to tell."""
        if fault.machine is None:
            return
        self.count += 1
        if not self.count & (self.count - 1):
            ordinal = "" if self.count == 1 else f" ({self.count} by now)"
            self._report(f"IOMMU fault{ordinal}: {fault}")


@contextmanager
def iommu_watched(
    machine: EngineMachine,
    name: str,
    functions: Collection[PcieId],
    report: Report,
    *,
    stop_on_fault: bool = False,
) -> Iterator[FaultTeller]:
    """Report what the IOMMU refuses these functions; with `stop_on_fault` the first ends the machine.

    Where the kernel's log can't be read this is said, and nothing is watched.

    Raises:
        StoppedByFaultError: a fault came, with `stop_on_fault`: instead of what the machine's end raises.
    """
    teller = FaultTeller(report)
    stopped: list[Fault] = []

    def stop(_: str, fault: Fault) -> None:
        stopped.append(fault)
        machine.abort()

    monitor = FaultMonitor(
        notify=teller.tell,
        machine_of=lambda address: name if address in functions else None,
        stop_machine=stop if stop_on_fault else None,
    )
    try:
        monitor.start()
    except IolaneError as error:
        if stop_on_fault:
            raise
        report(f"IOMMU faults are not watched: {error}")
    try:
        yield teller
    except IolaneError as error:
        if not stopped:
            raise
        raise _ended_by(stopped[0]) from error
    finally:
        monitor.stop()
    if stopped:
        raise _ended_by(stopped[0])


def _ended_by(fault: Fault) -> StoppedByFaultError:
    return StoppedByFaultError(f"the machine was ended by its IOMMU fault: {fault}")
