"""What `iolane lab` does: one command in a lab, or a shell."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from iolane.engines.qemu.agent import Type
from iolane.engines.qemu.cache import Report
from iolane.errors import IolaneError
from iolane.lab.fault_trace import TraceRecord
from iolane.lab.hardware import DEFAULT_DEVICES, LabDevice, parse_device
from iolane.lab.init import SHARE
from iolane.lab.machine import Lab, LabConfig, check_config
from iolane.lab.shell import Shell
from iolane.operations.run import TIMED_OUT, UNLIMITED
from iolane.operations.terminal import ESCAPE_NAME, require_terminal

NO_DEVICE = "none"
TOLD_FAULTS = 8
"""Faults that are told one by one; the rest are counted."""


@dataclass(frozen=True)
class LabRequest:
    """What the user wants of a lab."""

    config: LabConfig = field(default_factory=LabConfig)
    devices: Sequence[str] = ()
    """As on the command line; none given: the default ones."""
    command: Sequence[str] = ()
    timeout: float = UNLIMITED
    stdin: bytes = b""


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One access that the IOMMU blocked."""

    blocked: str
    source: str | None = None
    address: int | None = None
    write: bool | None = None
    reason: int | None = None
    index: int | None = None
    detail: str = ""

    def __str__(self) -> str:
        who = self.source or "a device"
        if self.blocked == "interrupt":
            return (
                f"{who}: an interrupt{_known(', table entry ', self.index)}{_known(', reason ', self.reason)}"
            )
        access = "an access" if self.write is None else ("a write" if self.write else "a read")
        where = "" if self.address is None else f" at {self.address:#x}"
        return f"{who}: {access}{where}{_known(', reason ', self.reason)}"


def _known(label: str, value: int | None) -> str:
    return "" if value is None else f"{label}{value:#x}"


class LabDeviceReport(msgspec.Struct, frozen=True):
    """A device of the lab and where it was."""

    id: str
    kind: str
    address: str


class LabShellResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a shell in the lab went."""

    exit_code: int
    seconds: float
    boot_seconds: float
    iommu: str
    devices: list[LabDeviceReport]
    faults: list[Fault]


class LabRunResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a command in the lab went."""

    command: str
    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool
    boot_seconds: float
    iommu: str
    devices: list[LabDeviceReport]
    faults: list[Fault]
    kernel: str
    """The last lines of the lab's kernel log, when the command failed."""


def fault_of(record: TraceRecord) -> Fault:
    """A record of the trace, for people and JSON."""
    return Fault(
        blocked=str(record.blocked),
        source=None if record.source is None else str(record.source),
        address=record.address,
        write=record.write,
        reason=record.reason,
        index=record.index,
        detail=record.detail,
    )


def parse_devices(texts: Sequence[str]) -> Sequence[LabDevice]:
    """The devices that the command line names: none named means the default ones."""
    if not texts:
        return DEFAULT_DEVICES
    if NO_DEVICE in texts:
        if len(texts) > 1:
            raise IolaneError("'none' beside other devices", remedy="leave out one or the other")
        return ()
    return [parse_device(text) for text in texts]


def run_in_lab(request: LabRequest, report: Report, *, stream: bool) -> LabRunResult:
    """Boot a lab, run the command, end the lab. With `stream` the output goes straight to ours."""
    command = request.command[0] if len(request.command) == 1 else list(request.command)
    with _lab(request, parse_devices(request.devices), report) as lab:
        result = lab.run(
            command,
            timeout=request.timeout,
            stdin=request.stdin,
            on_output=_pass_on if stream else None,
        )
        if result.timed_out:
            report(f"the command was ended after {request.timeout:g} s")
        faults = [fault_of(record) for record in lab.iommu_trace()]
        _tell_faults(faults, report)
        return LabRunResult(
            command=result.command,
            exit_code=TIMED_OUT if result.timed_out else result.exit_code,
            stdout=result.stdout.decode(errors="replace"),
            stderr=result.stderr.decode(errors="replace"),
            seconds=result.seconds,
            timed_out=result.timed_out,
            boot_seconds=lab.boot_seconds,
            iommu=str(request.config.iommu),
            devices=_device_reports(lab),
            faults=faults,
            kernel=result.kernel,
        )


def shell_in_lab(request: LabRequest, report: Report) -> LabShellResult:
    """Boot a lab and connect the terminal with a shell in it."""
    devices = parse_devices(request.devices)
    require_terminal("iolane lab run -- COMMAND")
    with _lab(request, devices, report) as lab:
        report(f"a shell in the lab; it ends with exit or {ESCAPE_NAME}")
        started = time.monotonic()
        code = Shell(lab, str(Path.cwd())).interact()
        print("\r")
        faults = [fault_of(record) for record in lab.iommu_trace()]
        _tell_faults(faults, report)
        return LabShellResult(
            exit_code=code,
            seconds=time.monotonic() - started,
            boot_seconds=lab.boot_seconds,
            iommu=str(request.config.iommu),
            devices=_device_reports(lab),
            faults=faults,
        )


def _device_reports(lab: Lab) -> list[LabDeviceReport]:
    return [LabDeviceReport(each.id, str(each.device.kind), str(each.address)) for each in lab.devices]


@contextlib.contextmanager
def _lab(request: LabRequest, devices: Sequence[LabDevice], report: Report) -> Iterator[Lab]:
    check_config(request.config)
    with _shared_folder(request.config.share, report) as share:
        config = replace(request.config, devices=devices, share=share)
        with Lab(config, report=report) as lab:
            yield lab


@contextlib.contextmanager
def _shared_folder(chosen: Path | None, report: Report) -> Iterator[Path]:
    """The user's, or a fresh one, which stays when there is something in it."""
    if chosen is not None:
        yield chosen
        return
    folder = Path(tempfile.mkdtemp(prefix="iolane-share-"))
    report(f"shared folder: {folder} here, {SHARE} in the lab")
    try:
        yield folder
    finally:
        try:
            folder.rmdir()
        except OSError:
            report(f"{folder} has what the lab left in {SHARE}")


def _tell_faults(faults: list[Fault], report: Report) -> None:
    if not faults:
        return
    report(f"the IOMMU blocked {len(faults)} access{'es' if len(faults) > 1 else ''}:")
    for fault in faults[:TOLD_FAULTS]:
        report(f"  {fault}")
    if len(faults) > TOLD_FAULTS:
        report(f"  and {len(faults) - TOLD_FAULTS} more")


def _pass_on(kind: Type, data: bytes) -> None:
    """The lab's output as ours, as it comes."""
    stream = sys.stderr if kind is Type.STDERR else sys.stdout
    stream.flush()
    view = memoryview(data)
    while view:
        view = view[os.write(stream.fileno(), view) :]
