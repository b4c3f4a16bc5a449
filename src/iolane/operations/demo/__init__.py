"""The demonstration: a stock Debian kernel at work with a disk and a serial port written in Python.

Every claim it makes is checked: data by SHA-256 computed in the guest and here, drivers by the guest's sysfs,
traps, interrupts and DMA by the devices' own counts.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from iolane.carriers.control import DeviceReport, RunDirectory
from iolane.engines.qemu.cache import Report
from iolane.operations.demo.disk import DRIVER as DISK_DRIVER
from iolane.operations.demo.disk import DiskDemo
from iolane.operations.demo.line import DRIVER as LINE_DRIVER
from iolane.operations.demo.line import LineDemo
from iolane.operations.demo.results import Check, DemoResult, DeviceRow, Throughput
from iolane.operations.run import RunRequest, machine_with_devices, shut_down
from iolane.operations.served_device import ServedDevice

__all__ = ["Check", "DemoResult", "DeviceRow", "Throughput", "run_demo"]

DISK, LINE = "disk", "line"


def run_demo(report: Report, *, payload: int = 64 << 20) -> DemoResult:
    """Boot, work, compare. Leaves nothing behind, whatever happens."""
    started = time.monotonic()
    with RunDirectory() as run, tempfile.TemporaryDirectory(prefix="iolane-demo-") as scratch:
        image, socket = Path(scratch) / "disk.raw", run.path / "line.sock"
        report(f"making a disk image of {2 * payload >> 20} MiB")
        disk, line = DiskDemo(image, payload), LineDemo(socket)
        request = RunRequest(
            devices=[
                f"nvme,image={_escaped(image)},id={DISK}",
                f"serial,stream=listen:{_escaped(socket)},id={LINE}",
            ]
        )
        with machine_with_devices(request, report) as (machine, servers, engine):
            devices = {each.name: each.device for each in servers.served if isinstance(each, ServedDevice)}
            kernel = machine.check("uname -sr").strip()
            seen = {
                DISK: disk.run(machine, devices[DISK], report),
                LINE: line.run(machine, devices[LINE], report),
            }
            reports = {device.name: device for device in servers.reports()}
            boot_seconds = machine.boot_seconds
            shut_down(machine)
        rows = [_row(reports[name], driver, throughput) for name, (driver, throughput, _) in seen.items()]
        checks = [check for _, _, found in seen.values() for check in found]
        checks += [*_counted(rows[0], DISK_DRIVER, payload), *_counted(rows[1], LINE_DRIVER, 0)]
        checks += [_untroubled(reports[name]) for name in seen]
        return DemoResult(
            kernel=kernel,
            engine=str(engine),
            boot_seconds=boot_seconds,
            seconds=time.monotonic() - started,
            devices=rows,
            checks=checks,
            ok=all(check.ok for check in checks),
        )


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")


def _row(report: DeviceReport, driver: str, throughput: Throughput) -> DeviceRow:
    counters = report.counters
    return DeviceRow(
        name=report.name,
        type=report.type,
        driver=driver,
        interrupt_mode=report.interrupt_mode,
        interrupts=counters["interrupts"],
        traps=counters["traps"],
        dma_bytes=counters["dma_bytes_read"] + counters["dma_bytes_written"],
        throughput=throughput,
    )


def _counted(row: DeviceRow, driver: str, payload: int) -> list[Check]:
    """The stock driver works with it, and the work went through registers, interrupts and DMA."""
    checks = [
        Check(
            f"{row.name}: the guest's stock driver", row.driver == driver, f"{row.driver or 'none'} is bound"
        ),
        Check(f"{row.name}: traps", row.traps > 0, f"{row.traps} register accesses"),
        Check(
            f"{row.name}: interrupts",
            row.interrupts > 0,
            f"{row.interrupts} by {row.interrupt_mode or 'nothing'}",
        ),
    ]
    if payload:  # written once, read twice: timed and summed
        enough = row.dma_bytes >= 3 * payload
        checks.append(Check(f"{row.name}: DMA", enough, f"{row.dma_bytes} bytes"))
    return checks


def _untroubled(report: DeviceReport) -> Check:
    """Nothing was refused, nothing failed on the way."""
    troubles = {name: report.counters[name] for name in ("rejected", "dma_faults", "errors")}
    detail = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in troubles.items())
    return Check(f"{report.name}: no trouble", not any(troubles.values()), detail)
