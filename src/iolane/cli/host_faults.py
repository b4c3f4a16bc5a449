"""`iolane host faults`: what the IOMMU refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from iolane.cli.output import Json, print_json, print_table

if TYPE_CHECKING:
    from iolane.host.fault_monitor import FaultReport
    from iolane.host.faults import Fault
    from iolane.model.pci.pcie_id import PcieId


def faults(
    watch: Annotated[bool, typer.Option("--watch", help="Print those to come, until Ctrl-C.")] = False,
    json: Json = False,
) -> int:
    """Show DMA and interrupts that the IOMMU refused, by function, machine and reason.

    They come from the kernel's log, which is limited in size and rate: what the kernel held back is counted.
    With --watch and --json, one object a line.

    \b
    Examples:
      iolane host faults
      iolane host faults --watch
      iolane host faults --json
    """
    from iolane.host.fault_monitor import collect
    from iolane.host.sysfs import Host

    if watch:
        return _watch(json)
    report = collect(Host(), machine_of=_machine_of)
    if json:
        print_json(report)
    else:
        _print(report)
    return 0


def _watch(json: bool) -> int:
    import signal

    from iolane.host.fault_monitor import FaultMonitor

    def tell(fault: Fault) -> None:
        print_json(fault, indent=0) if json else print(fault, flush=True)

    with FaultMonitor(notify=tell, machine_of=_machine_of):
        while True:
            signal.pause()


def _print(report: FaultReport) -> None:
    if not report.faults:
        print("no IOMMU fault is in the kernel's log")
    for fault in report.faults:
        print(f"[{fault.time:12.6f}] {fault}")
    if report.counts:
        print()
        rows = [
            (each.count, each.function, each.machine or "-", each.kind, each.reason) for each in report.counts
        ]
        print_table(("count", "function", "machine", "what", "reason"), rows, numeric=("count",))
    if report.suppressed:
        print(f"\n{report.suppressed} messages more were held back by the kernel's rate limit")
    if report.overflows:
        print(f"\nthe IOMMU had no room for faults {report.overflows} times; those are lost")
    if report.lost:
        print("\nolder messages were overwritten while they were read")


def _machine_of(address: PcieId) -> str | None:
    from iolane.carriers.control import held_functions

    return next((held.machine for held in held_functions() if held.function == str(address)), None)
