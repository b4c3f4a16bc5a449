"""The demonstration: a stock Debian kernel at work with devices written in Python.

One disk image is shown to it in two lanes, one after the other: as a virtio disk whose rings are served by
vhost-user, then, plugged in while the guest runs, as an NVMe disk whose registers trap. Beside them a serial
port. Every claim it makes is checked: data by SHA-256 computed in the guest and here, drivers by the guest's
sysfs, traps, kicks, interrupts and DMA by the devices' own counts.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from iolane.carriers.control import DeviceReport, RunDirectory
from iolane.engines.qemu.cache import Report
from iolane.operations.demo.disk import EMULATED, PARAVIRTUAL, DiskDemo, DiskLane
from iolane.operations.demo.line import DRIVER as LINE_DRIVER
from iolane.operations.demo.line import LineDemo
from iolane.operations.demo.results import Check, DemoResult, DeviceRow, Events, Seen, Throughput
from iolane.operations.machine import Machine, MachineDescription
from iolane.operations.run import shut_down
from iolane.operations.served_device import ServedDevice
from iolane.operations.serving import Served

__all__ = ["Check", "DemoResult", "DeviceRow", "Events", "Throughput", "run_demo"]

LINE = "line"


def run_demo(report: Report, *, payload: int = 64 << 20) -> DemoResult:
    """Boot, work, compare. Leaves nothing behind, whatever happens."""
    started = time.monotonic()
    with RunDirectory() as run, tempfile.TemporaryDirectory(prefix="iolane-demo-") as scratch:
        image, socket = Path(scratch) / "disk.raw", run.path / "line.sock"
        report(f"making a disk image of {2 * payload >> 20} MiB")
        disk, line = DiskDemo(image, payload), LineDemo(socket)
        description = MachineDescription(
            devices=[_disk(PARAVIRTUAL, image), f"serial,stream=listen:{_escaped(socket)},id={LINE}"],
            modules=[EMULATED.driver],
        )
        with Machine(description, report=report) as machine:
            first, port = machine.devices.servers.served
            assert isinstance(port, ServedDevice)
            kernel = machine.check("uname -sr").strip()
            account = _Account()
            seen = disk.run(machine.qemu, first, PARAVIRTUAL, report)
            account.add(first, PARAVIRTUAL.lane, PARAVIRTUAL.carrier, PARAVIRTUAL.driver, seen, payload)
            report(f"unplugging {first.name}: only one device may write to an image")
            machine.unplug(first.name).require(first.name)
            report(f"plugging {EMULATED.device} in, with the same image")
            second = machine.devices.served(machine.plug(f"{_disk(EMULATED, image)},presentation=msix").id)
            assert second is not None
            seen = disk.run(machine.qemu, second, EMULATED, report)
            account.add(second, EMULATED.lane, EMULATED.carrier, EMULATED.driver, seen, payload)
            seen = line.run(machine.qemu, port, report)
            account.add(port, EMULATED.lane, EMULATED.carrier, LINE_DRIVER, seen, 0)
            boot_seconds, engine = machine.boot_seconds, machine.engine
            shut_down(machine)
        return DemoResult(
            kernel=kernel,
            engine=engine,
            boot_seconds=boot_seconds,
            seconds=time.monotonic() - started,
            devices=account.rows,
            checks=account.checks,
            ok=all(check.ok for check in account.checks),
        )


def _disk(lane: DiskLane, image: Path) -> str:
    return f"{lane.device},image={_escaped(image)},id={lane.device},carrier={lane.carrier}"


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")


class _Account:
    """What was seen so far."""

    def __init__(self) -> None:
        self.rows: list[DeviceRow] = []
        self.checks: list[Check] = []

    def add(self, served: Served, lane: str, carrier: str, driver: str, seen: Seen, payload: int) -> None:
        """A device's work is done: take its counts."""
        report = served.report()
        row = _row(report, lane, carrier, seen)
        self.rows.append(row)
        self.checks += [*seen.checks, *_counted(row, driver, payload), _untroubled(report)]


def _row(report: DeviceReport, lane: str, carrier: str, seen: Seen) -> DeviceRow:
    counters = report.counters
    return DeviceRow(
        name=report.name,
        type=report.type,
        lane=lane,
        carrier=carrier,
        driver=seen.driver,
        interrupt_mode=report.interrupt_mode,
        interrupts=counters["interrupts"],
        traps=counters["traps"],
        kicks=counters.get("kicks", 0),
        each=seen.each,
        dma_bytes=counters["dma_bytes_read"] + counters["dma_bytes_written"],
        throughput=seen.throughput,
    )


def _counted(row: DeviceRow, driver: str, payload: int) -> list[Check]:
    """The stock driver works with it, and the work went the lane's way: through registers that trap, or by
    kicks and shared rings alone; and through interrupts and DMA.
    """
    bound = f"{row.driver or 'none'} is bound"
    trapped = f"{row.traps} register accesses"
    checks = [Check(f"{row.name}: the guest's stock driver", row.driver == driver, bound)]
    if row.lane == PARAVIRTUAL.lane:
        checks.append(Check(f"{row.name}: kicks", row.kicks > 0, f"{row.kicks} of the queue"))
        checks.append(Check(f"{row.name}: no traps", row.traps == 0, trapped))
    else:
        checks.append(Check(f"{row.name}: traps", row.traps > 0, trapped))
    interrupted = f"{row.interrupts} by {row.interrupt_mode or 'nothing'}"
    checks.append(Check(f"{row.name}: interrupts", row.interrupts > 0, interrupted))
    if payload:  # written once, read twice: timed and summed
        checks.append(Check(f"{row.name}: DMA", row.dma_bytes >= 3 * payload, f"{row.dma_bytes} bytes"))
    return checks


def _untroubled(report: DeviceReport) -> Check:
    """Nothing was refused, nothing failed on the way."""
    troubles = {name: report.counters[name] for name in ("rejected", "dma_faults", "errors")}
    detail = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in troubles.items())
    return Check(f"{report.name}: no trouble", not any(troubles.values()), detail)
