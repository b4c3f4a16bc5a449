"""The lab: an emulated host, booted once, in which any number of commands run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from iolane.engines.qemu.agent import CommandFailedError, CommandResult, OutputFunction
from iolane.engines.qemu.cache import Cache, Report
from iolane.engines.qemu.command_line import Accelerator
from iolane.engines.qemu.console import Console
from iolane.engines.qemu.initramfs import InitramfsContent
from iolane.engines.qemu.kernel import Flavour, debian_kernel
from iolane.engines.qemu.machine import MachineConfig, QemuMachine
from iolane.engines.qemu.vmlinux import uncompressed
from iolane.errors import IolaneError
from iolane.lab import hardware, init
from iolane.lab.disk import make_disk
from iolane.lab.environment import checkout, command_line, environment
from iolane.lab.fault_trace import EVENTS, TraceRecord, parse_trace
from iolane.lab.hardware import DEFAULT_DEVICES, Iommu, Kind, LabDevice, PlacedDevice
from iolane.lab.package import package_files
from iolane.lab.scratch import scratch_folder
from iolane.model.pci.pcie_id import PcieId
from iolane.operations.interruption import INTERRUPTION

BOOT_SECONDS = 240.0
"""The longest a boot may take: the machine may be busy."""
SMALLEST_MIB = 512
LOG_LINES = 15
LARGEST_TRACE = 64 << 20


class LabError(IolaneError):
    """The lab did not come up, or is gone."""


class LabCommandError(CommandFailedError):
    """A command in the lab failed. The message ends with the last lines of the lab's kernel log."""


@dataclass(frozen=True)
class LabConfig:
    """What the lab is to be."""

    iommu: Iommu = Iommu.VTD
    devices: Sequence[LabDevice] = DEFAULT_DEVICES
    memory_mib: int = 2048
    cpus: int = 2
    share: Path | None = None
    """The folder writable in the lab, there at /lab/share; by default a fresh one, removed with the lab."""
    append: str = ""
    """More kernel parameters."""
    modules: Sequence[str] = ()
    """More kernel modules, by name."""
    folder: Path | None = None
    """Where commands start; by default the current folder."""
    extra_arguments: Sequence[str] = ()
    """More arguments of QEMU."""
    boot_timeout: float = BOOT_SECONDS
    console_log: Path | None = None


def check_config(config: LabConfig) -> None:
    """Refuses what can't come up, before anything is made or fetched."""
    if config.memory_mib < SMALLEST_MIB:
        raise IolaneError(f"a lab with {config.memory_mib} MiB would not come up", remedy="512M or more")
    if config.share is not None and not config.share.is_dir():
        raise IolaneError(f"{config.share} is no folder to share", remedy=f"mkdir {config.share}")
    for device in config.devices:
        hardware.check_device(device)


@dataclass(frozen=True)
class LabResult(CommandResult):
    """How a command in the lab ended and what it wrote; of one that failed, what the kernel had said."""

    kernel: str = ""
    """The last lines of the kernel's log when the command failed; of one that did not, nothing."""

    def check(self) -> LabResult:
        """Itself, or `LabCommandError` when the exit code is not 0."""
        try:
            super().check()
        except CommandFailedError as error:
            raise LabCommandError(f"{error.message}\nthe lab's kernel: {self.kernel}") from None
        return self


class Lab:
    """One emulated host. A context manager: entering boots it, leaving cleans everything up.

    Commands run as root, one at a time, with this machine's files as they are here; what they write stays in
    the lab's memory, except below `share`."""

    def __init__(
        self, config: LabConfig | None = None, cache: Cache | None = None, report: Report | None = None
    ) -> None:
        self.config = config or LabConfig()
        check_config(self.config)
        self.devices = hardware.place(self.config.devices)
        self._cache = cache or Cache(report=report or _silent)
        self._report = report or _silent
        self._undo = contextlib.ExitStack()
        self._machine: QemuMachine | None = None
        self._trace: int | None = None
        self._disks: dict[str, Path] = {}
        self.share = self.config.share.absolute() if self.config.share else Path()
        """The shared folder here; in the lab it is at /lab/share."""
        self.boot_seconds = 0.0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Boots the lab. On any failure everything is cleaned up again."""
        if self._machine is not None:
            raise IolaneError("the lab is started already")
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the lab at once and removes what it left here. Harmless when repeated."""
        self._machine = None
        self._undo.close()

    @property
    def running(self) -> bool:
        """Whether the lab's QEMU runs."""
        return self._machine is not None and self._machine.running

    @property
    def machine(self) -> QemuMachine:
        """The machine that plays the host."""
        if self._machine is None:
            raise IolaneError("the lab is not running", remedy="start it first")
        return self._machine

    @property
    def console(self) -> Console:
        """The lab's kernel console."""
        return self.machine.console

    # -- commands -----------------------------------------------------------------------------------------

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float = 120.0,
        stdin: bytes = b"",
        merge: bool = False,
        on_output: OutputFunction | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> LabResult:
        """Runs a command in the lab as root: a string in the shell, a sequence literally.

        After `timeout` seconds it is killed with all its children. `on_output` gets the output as it comes.
        `variables` are added to its environment."""
        text = command_line(command, self._folder(), environment(more=variables))
        result = self.machine.run(text, stdin=stdin, timeout=timeout, merge=merge, on_output=on_output)
        failed = result.exit_code != 0 or result.timed_out
        shown = command if isinstance(command, str) else " ".join(command)
        return LabResult(
            shown,
            result.exit_code,
            result.stdout,
            result.stderr,
            result.timed_out,
            result.seconds,
            self._kernel_log() if failed else "",
        )

    def check(self, command: str | Sequence[str], *, timeout: float = 120.0, stdin: bytes = b"") -> str:
        """The standard output of a command that must succeed; `LabCommandError` when it doesn't."""
        return self.run(command, timeout=timeout, stdin=stdin).check().stdout.decode(errors="replace")

    def python(self, script: str, *arguments: str, timeout: float = 120.0, stdin: bytes = b"") -> LabResult:
        """Runs a Python script (its text) in the lab, with this interpreter and this checkout."""
        return self.run([sys.executable, "-c", script, *arguments], timeout=timeout, stdin=stdin)

    def iommu_trace(self) -> list[TraceRecord]:
        """Every access that the emulated IOMMU has blocked so far, as QEMU itself recorded it."""
        if self._trace is None:
            return []
        return parse_trace(os.pread(self._trace, LARGEST_TRACE, 0).decode(errors="replace"))

    # -- hardware -----------------------------------------------------------------------------------------

    def device(self, identity: str) -> PlacedDevice:
        """A device by its id: `nvme0`."""
        for each in self.devices:
            if each.id == identity:
                return each
        known = ", ".join(each.id for each in self.devices)
        raise IolaneError(f"the lab has no device {identity}", remedy=f"it has {known or 'none'}")

    def address(self, identity: str) -> PcieId:
        """Where the device is in the lab."""
        return self.device(identity).address

    def image(self, identity: str) -> Path:
        """The file here that is the disk's content, while the lab runs."""
        if identity not in self._disks:
            raise IolaneError(f"{identity} is no disk of the lab", remedy=f"disks: {', '.join(self._disks)}")
        return self._disks[identity]

    # -- inside -------------------------------------------------------------------------------------------

    def _kernel_log(self) -> str:
        """Asked of the kernel, because its console lags behind the agent; the console's when it is dead."""
        try:
            return self.machine.run(f"{init.TOOLS}/dmesg | tail -n {LOG_LINES}", timeout=20.0).output.strip()
        except IolaneError:
            return self.console.tail(LOG_LINES)

    def _folder(self) -> str:
        return str((self.config.folder or Path.cwd()).absolute())

    def _start(self) -> None:
        with INTERRUPTION.held():
            scratch = self._undo.enter_context(scratch_folder())
        self.share = self._share(scratch)
        self._make_disks(scratch)
        trace = scratch / "trace"
        trace.touch()
        self._trace = os.open(trace, os.O_RDONLY | os.O_CLOEXEC)
        self._undo.callback(self._close_trace)
        machine = QemuMachine(self._machine_config(trace), self._cache)
        names = ", ".join(f"{each.id} at {each.address}" for each in self.devices) or "no device"
        self._report(f"booting the lab: IOMMU {self.config.iommu}; {names}")
        self._undo.enter_context(machine)
        self._machine = machine
        self.boot_seconds = machine.boot_seconds
        self._check_root()
        self._report(f"the lab is up after {machine.boot_seconds:.1f} s")

    def _close_trace(self) -> None:
        trace, self._trace = self._trace, None
        if trace is not None:
            os.close(trace)

    def _share(self, scratch: Path) -> Path:
        chosen = self.config.share
        if chosen is None:
            folder = scratch / "share"
            folder.mkdir()
            return folder
        return chosen.absolute()

    def _make_disks(self, scratch: Path) -> None:
        for each in self.devices:
            if each.device.kind is Kind.NVME:
                image = each.device.image
                if image is None:
                    image = scratch / f"{each.id}.raw"
                    make_disk(image, each.id, each.device.size)
                self._disks[each.id] = image.absolute()

    def _machine_config(self, trace: Path) -> MachineConfig:
        config = self.config
        return MachineConfig(
            name="lab",
            memory_mib=config.memory_mib,
            cpus=config.cpus,
            kernel=uncompressed(debian_kernel(Flavour.GENERIC, self._cache), self._cache),
            content=self._initramfs(),
            append=" ".join([*hardware.kernel_parameters(config.iommu), config.append]),
            board=hardware.board(config.iommu),
            ports=0,
            accelerator=Accelerator.TCG,
            boot_timeout=config.boot_timeout,
            console_log=config.console_log,
            extra_arguments=[
                *_shared_files(self.share),
                *hardware.device_arguments(self.devices, self._disks),
                *(word for event in EVENTS for word in ("-trace", event)),
                *("-D", str(trace)),
                *config.extra_arguments,
            ],
        )

    def _initramfs(self) -> InitramfsContent:
        package = (checkout() / "iolane").resolve()
        return init.content(package, package_files(package, self._cache), self.config.modules)

    def _check_root(self) -> None:
        """The set-up script has its own words for what went wrong; they are on the console."""
        if self.machine.run(f"test -e {init.READY}").exit_code == 0:
            return
        said = self.console.lines_with("iolane-lab:") or [self.console.tail(10)]
        raise LabError(
            f"the lab's root was not set up: {' | '.join(said)}",
            remedy=f"the whole console is in {self.console.log}",
        )


def _shared_files(share: Path) -> list[str]:
    """This machine's files, which QEMU itself will not write to, and the folder that may be written."""
    host = f"local,id={init.HOST_TAG},path=/,security_model=none,readonly=on,multidevs=remap"
    folder = f"local,id={init.SHARE_TAG},path={hardware.escaped(share)},security_model=none,multidevs=remap"
    arguments: list[str] = []
    for slot, (tag, fsdev) in enumerate(((init.HOST_TAG, host), (init.SHARE_TAG, folder)), 2):
        arguments += ["-fsdev", fsdev]
        arguments += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag},addr={slot:#x}"]
    return arguments


def _silent(line: str) -> None:
    """For who wants no report."""
