"""In the lab: one guest with the same disk in every lane, for comparing them. Runs in the emulated host."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from iolane.engines.qemu.cache import Report
from iolane.engines.qemu.command_line import MachineDevice
from iolane.engines.qemu.initramfs import InitramfsContent
from iolane.engines.qemu.kernel import Flavour, debian_kernel
from iolane.engines.qemu.machine import MachineConfig, QemuMachine
from iolane.engines.qemu.vmlinux import uncompressed
from iolane.errors import IolaneError
from iolane.model.pci import PcieId
from iolane.operations.machine.devices import machine_device
from iolane.operations.mediation import MediationRequest
from iolane.operations.passthrough import PassedFunctions, PassRequest, default_id
from iolane.operations.serving import DeviceServers

NVME_MAP = "iolane.devices.nvme.registers:NvmeRegisters"
DRIVERS = ("nvme", "virtio_pci", "virtio_blk")
GUEST_MIB = 256
STEP = 600.0
"""Seconds that one step in the guest may take: it is emulated twice, on a machine that may be busy."""


class Lane(StrEnum):
    """What the guest sees."""

    EMULATED = "emulated"
    PARAVIRTUAL = "paravirtual"
    PASSTHROUGH = "passthrough"


class Way(StrEnum):
    """Who is behind a disk."""

    IOLANE = "iolane"
    QEMU = "QEMU"
    DIRECT = "direct"
    MEDIATED = "mediated"


@dataclass(frozen=True)
class LaneDisk:
    """The disk in one lane. `id` is its serial number too, by which the guest finds it."""

    id: str
    lane: Lane
    way: Way
    device: str
    carrier: str

    @property
    def title(self) -> str:
        """In a table or a picture."""
        return f"{self.device}, {self.way}"


DISKS = (
    LaneDisk("emulated", Lane.EMULATED, Way.IOLANE, "NVMe", "vfio-user"),
    LaneDisk("emulated-qemu", Lane.EMULATED, Way.QEMU, "NVMe", "in QEMU"),
    LaneDisk("paravirtual", Lane.PARAVIRTUAL, Way.IOLANE, "virtio-blk", "vhost-user"),
    LaneDisk("virtio-qemu", Lane.PARAVIRTUAL, Way.QEMU, "virtio-blk", "in QEMU"),
    LaneDisk("direct", Lane.PASSTHROUGH, Way.DIRECT, "NVMe", "VFIO"),
    LaneDisk("mediated", Lane.PASSTHROUGH, Way.MEDIATED, "NVMe", "vfio-user before VFIO"),
)


def disk(identity: str) -> LaneDisk:
    """A disk by its id. Raises IolaneError: there is none."""
    for each in DISKS:
        if each.id == identity:
            return each
    raise IolaneError(f"no lane has the disk '{identity}'", remedy=", ".join(each.id for each in DISKS))


class LanesGuest:
    """A guest with disks in several lanes, while it is entered.

    Args:
        disks: which ones.
        functions: disk -> the NVMe function of this host that is passed, for those that are; all have the
            same content, of which the other disks get a copy.
        report: is told what takes time.
        files: for the guest, path there -> file here; they are in its initramfs.
    """

    def __init__(
        self,
        disks: Sequence[LaneDisk],
        functions: dict[str, PcieId],
        report: Report,
        files: Mapping[str, Path] | None = None,
    ) -> None:
        self.disks = disks
        self._files = files or {}
        self._functions = functions
        self._report = report
        self._stack = ExitStack()
        self._paths: dict[str, str] = {}
        self._names: dict[str, str] = {}
        """Disk -> the device that this process serves for it."""
        self.serials: dict[str, str] = {}

    def __enter__(self) -> Self:
        with self._stack as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="iolane-lanes-")))
        source = block_device(next(iter(self._functions.values())))
        copies = [each for each in self.disks if each.id not in self._functions]
        images = {each.id: scratch / f"{each.id}.raw" for each in copies}
        for image in images.values():
            shutil.copyfile(source, image)
        self._report("taking the functions that are passed")
        for each, address in self._functions.items():
            self.serials[each] = _serial(address)
        handed = [_request(each, self._functions[each.id]) for each in self.disks if each not in copies]
        passed = stack.enter_context(PassedFunctions(handed))
        ours = [each for each in self.disks if each.way is Way.IOLANE]
        self.servers = stack.enter_context(
            DeviceServers([_served(each, images[each.id]) for each in ours], beside=passed.mediated)
        )
        devices: list[MachineDevice] = [
            *(machine_device(endpoint) for endpoint in self.servers.endpoints),
            *passed.devices,
        ]
        qemus = [each for each in self.disks if each.way is Way.QEMU]
        ports = [f"port{len(devices) + number}" for number in range(1, len(qemus) + 1)]
        config = MachineConfig(
            name="lanes",
            memory_mib=GUEST_MIB,
            kernel=uncompressed(debian_kernel(Flavour.GENERIC)),
            content=InitramfsContent(modules=DRIVERS, files=self._files),
            devices=devices,
            ports=len(devices) + len(qemus),
            extra_arguments=[
                word
                for each, port in zip(qemus, ports, strict=True)
                for word in _own_device(each, images[each.id], port)
            ],
        )
        self._report(f"booting a guest with {len(self.disks)} disks")
        self.machine = stack.enter_context(QemuMachine(config))
        self._report(f"it is up after {self.machine.boot_seconds:.0f} s")

    def path(self, wanted: LaneDisk) -> str:
        """The disk in the guest: `/dev/nvme1n1`."""
        if wanted.id not in self._paths:
            self._paths[wanted.id] = self._find(self.serials.get(wanted.id, wanted.id))
        return self._paths[wanted.id]

    def _find(self, serial: str) -> str:
        script = (
            "i=0; while [ $i -lt 600 ]; do for d in /sys/block/*; do "
            # the single paths of an NVMe subsystem are there too, without a device file
            "[ -e /dev/${d##*/} ] || continue; "
            f'if [ "$(cat $d/serial $d/device/serial 2>/dev/null | tr -d " ")" = "{serial}" ]; then '
            "echo /dev/${d##*/}; exit; fi; done; sleep 0.1; i=$((i+1)); done; exit 1"
        )
        found = self.machine.run(script, timeout=STEP)
        if found.exit_code != 0:
            raise IolaneError(f"the guest has no disk with the serial number {serial}")
        return found.output.strip()

    def driver(self, wanted: LaneDisk) -> str:
        """The driver that the guest has for it."""
        script = (
            f"d=/sys/block/{Path(self.path(wanted)).name}/device; "
            "for p in $d/driver $d/device/driver $d/nvme*/device/driver; do "
            '[ -e $p ] && basename "$(readlink $p)" && exit; done'
        )
        return self.machine.check(script, timeout=STEP).strip()

    def counters(self, wanted: LaneDisk) -> dict[str, int]:
        """What the device itself has counted; nothing where this process has no part in it."""
        for report in self.servers.reports():
            if report.name == wanted.id:
                return report.counters
        return {}


def _request(each: LaneDisk, address: PcieId) -> PassRequest:
    mediation = MediationRequest(registers=NVME_MAP) if each.way is Way.MEDIATED else None
    return PassRequest(text=default_id(address), address=address, id=each.id, rom=False, mediation=mediation)


def _served(each: LaneDisk, image: Path) -> str:
    kind = "nvme" if each.lane is Lane.EMULATED else "block"
    return f"{kind},image={image},serial={each.id},id={each.id}"


def _own_device(each: LaneDisk, image: Path, port: str) -> list[str]:
    """The arguments for a device of QEMU's own."""
    kind = "nvme" if each.lane is Lane.EMULATED else "virtio-blk-pci"
    return [
        *("-drive", f"if=none,id={each.id}.drive,file={image},format=raw"),
        *("-device", f"{kind},id={each.id},drive={each.id}.drive,serial={each.id},bus={port}"),
    ]


def block_device(address: PcieId) -> Path:
    """The disk that the host's own driver makes of an NVMe function."""
    serial = _serial(address)
    for folder in Path("/sys/block").iterdir():
        file = folder / "device/serial"
        if file.is_file() and file.read_text().strip() == serial:
            return Path("/dev") / folder.name
    raise IolaneError(f"{address} has no disk here", remedy="is it in the lab, with its driver?")


def _serial(address: PcieId) -> str:
    for file in Path(f"/sys/bus/pci/devices/{address}/nvme").glob("nvme*/serial"):
        return file.read_text().strip()
    raise IolaneError(f"{address} is no NVMe controller with its driver", remedy="see `iolane host`")
