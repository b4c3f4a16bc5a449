"""QEMU's command line for a machine: a pure function of what the machine is to be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from iolane.engines.qemu.qmp import Qmp
from iolane.engines.qemu.vfio import VfioPciDevice
from iolane.engines.qemu.vhost_user import VhostUserDevice, check_listening
from iolane.errors import IolaneError

QUICK_BOOT = (
    "quiet",
    "panic=-1",
    "nokaslr",
    "mitigations=off",
    "no_timer_check",
    "nowatchdog",
    "tsc=reliable",
    "cryptomgr.notests",
    "rcupdate.rcu_expedited=1",
    "random.trust_cpu=on",
)
"""Kernel parameters for a guest that is up soon: nothing calibrated, nothing self-tested, nothing said."""

SWITCHED_OFF = ("hpet", "smbus", "sata", "usb", "vmport", "i8042", "graphics")
"""Parts of q35 that no iolane guest needs and that its firmware and kernel would look into."""

PORT_PREFIX = "port"
FUNCTIONS = 8
"""Functions of a slot."""


class Accelerator(StrEnum):
    """What runs the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True)
class VfioUserDevice:
    """A device server that QEMU connects to: it must be listening at `socket` when the machine starts."""

    id: str
    socket: Path
    bootindex: int | None = None
    port: str | None = None
    """The root port it sits behind; by default the first free one."""
    posted_writes: bool = True
    physical: bool = False
    """A physical function is behind it, whose IOMMU holds the guest's memory where it is."""
    message_timeout_ms: int | None = None
    """How long QEMU waits for an answer of the server; its own limit is 5 s."""
    virtual: Sequence[Path] = ()
    """Where its virtual functions are served: the functions behind it in its slot. QEMU makes them with the
    machine, and the guest finds them when it enables them; docs/sriov.md says what it does then.
    """

    def arguments(self, port: str) -> list[str]:
        """Of the command line."""
        arguments = ["-device", json.dumps(self.properties(port))]
        for number, socket in enumerate(self.virtual, 1):
            virtual = VfioUserDevice(self.virtual_id(number - 1), socket, posted_writes=self.posted_writes)
            arguments += ["-device", json.dumps(virtual.properties(port) | {"addr": f"0.{number}"})]
        return arguments

    def virtual_id(self, number: int) -> str:
        """The id of virtual function `number`."""
        return f"{self.id}-vf{number}"

    def properties(self, port: str) -> dict[str, object]:
        """The properties of QEMU's vfio-user-pci."""
        properties: dict[str, object] = {
            "driver": "vfio-user-pci",
            "id": self.id,
            "bus": port,
            "socket": {"type": "unix", "path": str(self.socket.absolute())},
        }
        if self.bootindex is not None:
            properties["bootindex"] = self.bootindex
        if self.virtual:
            properties |= {"addr": "0.0", "multifunction": True}
        if not self.posted_writes:
            properties["x-no-posted-writes"] = True
        if self.message_timeout_ms is not None:
            properties["x-msg-timeout"] = self.message_timeout_ms
        return properties

    def check(self) -> None:
        """Refuse a device whose server is not there. Raises IolaneError."""
        check_listening(self.id, self.socket)
        if len(self.virtual) > FUNCTIONS - 1:
            raise IolaneError(f"{self.id} has {len(self.virtual)} virtual functions, a slot has room for 7")
        for number, socket in enumerate(self.virtual):
            check_listening(self.virtual_id(number), socket)

    def plug(self, qmp: Qmp, port: str) -> None:
        """Make it in a machine that runs."""
        if self.virtual:
            raise IolaneError(
                f"{self.id} has virtual functions, which are made with the machine",
                remedy="give it to the machine when it starts",
            )
        qmp.execute("device_add", 30.0, **self.properties(port))

    def forget(self, qmp: Qmp) -> None:
        """The device is gone; nothing was made beside it."""

    @property
    def remedy(self) -> str:
        """What to look at when QEMU refuses it."""
        return f"is its server listening at {self.socket}?"


MachineDevice = VfioUserDevice | VhostUserDevice | VfioPciDevice
"""A device that another process serves, or a function of this host."""


@dataclass(frozen=True)
class Board:
    """What processors, memory and devices sit on; the default is what iolane's guests need."""

    properties: Sequence[str] = ()
    """More properties of QEMU's machine, `kernel-irqchip=split` for instance."""
    switched_off: Sequence[str] = SWITCHED_OFF
    first: Sequence[str] = ()
    """Arguments that must come before those of every PCI function, as those of an IOMMU."""
    tcg: Sequence[str] = ("thread=multi",)
    """Properties of the accelerator TCG."""


@dataclass(frozen=True)
class Hardware:
    """Everything the command line says. File descriptors are the ends of socket pairs that QEMU inherits."""

    name: str
    accelerator: Accelerator
    qmp_fd: int = -1
    console_fd: int = -1
    agent_fd: int | None = None
    memory_mib: int = 512
    cpus: int = 1
    cpu_model: str | None = None
    iommu: bool = False
    board: Board = Board()
    ports: int = 8
    devices: Sequence[MachineDevice] = ()
    kernel: Path | None = None
    initrd: Path | None = None
    append: Sequence[str] = ()
    quick: bool = True
    paused: bool = False
    incoming: bool = False
    """Wait for another machine's state."""
    reboot_stops: bool = True
    extra: Sequence[str] = field(default_factory=tuple)


def kernel_parameters(hardware: Hardware) -> list[str]:
    """The kernel's command line; the caller's own words come last, so that they win."""
    words = ["console=ttyS0,115200", *(QUICK_BOOT if hardware.quick else ())]
    if hardware.iommu:
        words += ["intel_iommu=on", "iommu.strict=1"]
    return [*words, *hardware.append]


def place_devices(devices: Sequence[MachineDevice], ports: int) -> list[MachineDevice]:
    """Each device with its root port."""
    names = [f"{PORT_PREFIX}{number}" for number in range(1, ports + 1)]
    chosen = [device.port for device in devices if device.port is not None]
    taken = set(chosen)
    if unknown := sorted(taken - set(names)):
        raise IolaneError(f"no root port {unknown[0]}", remedy=f"there are {ports}: {' '.join(names)}")
    if len(chosen) > len(taken):
        raise IolaneError(f"a root port is taken twice: {' '.join(chosen)}", remedy="one device a port")
    if len({device.id for device in devices}) < len(devices):
        raise IolaneError("two devices have the same id")
    free = iter([name for name in names if name not in taken])
    placed = []
    for device in devices:
        port = device.port or next(free, None)
        if port is None:
            raise IolaneError(f"{len(devices)} devices but only {ports} root ports", remedy="raise `ports`")
        placed.append(replace(device, port=port))
    return placed


def command_line(hardware: Hardware) -> list[str]:
    """The arguments behind the binary's name."""
    return [
        *("-name", hardware.name, "-nodefaults", "-no-user-config", "-display", "none"),
        *_machine(hardware),
        *_channels(hardware),
        *_pci(hardware),
        *_boot(hardware),
        *hardware.extra,
    ]


def _machine(hardware: Hardware) -> list[str]:
    board = hardware.board
    machine = ["q35", "memory-backend=ram", *(f"{part}=off" for part in board.switched_off)]
    machine += board.properties
    if hardware.accelerator is Accelerator.KVM:
        accelerator, cpu = "kvm", "host"
        if hardware.iommu:
            machine.append("kernel-irqchip=split")
    else:
        accelerator, cpu = ",".join(("tcg", *board.tcg)), "max,la57=off"
    return [
        *("-machine", ",".join(machine), "-accel", accelerator, "-cpu", hardware.cpu_model or cpu),
        *("-smp", str(hardware.cpus), "-m", f"{hardware.memory_mib}M"),
        *("-object", f"memory-backend-memfd,id=ram,size={hardware.memory_mib}M,share=on"),
    ]


def _channels(hardware: Hardware) -> list[str]:
    arguments = [
        *("-chardev", f"socket,id=qmp,fd={hardware.qmp_fd}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=console,fd={hardware.console_fd}"),
        *("-device", "isa-serial,chardev=console,index=0"),
    ]
    if hardware.agent_fd is not None:
        arguments += ["-chardev", f"socket,id=agent,fd={hardware.agent_fd}"]
        arguments += ["-device", "isa-serial,chardev=agent,index=1"]
    return arguments


def _pci(hardware: Hardware) -> list[str]:
    arguments = list(hardware.board.first)
    if hardware.iommu:
        arguments += ["-device", "intel-iommu,caching-mode=on"]
    for number in range(1, hardware.ports + 1):
        port = f"pcie-root-port,id={PORT_PREFIX}{number},bus=pcie.0,chassis={number},slot={number}"
        arguments += ["-device", port]
    placed = place_devices(hardware.devices, hardware.ports)
    # QEMU 11 aborts when vfio-pci comes to a machine that has vfio-user-pci (hw/vfio/container-legacy.c takes
    # every container for one of its own); the other way round it does not.
    for device in sorted(placed, key=lambda each: not isinstance(each, VfioPciDevice)):
        assert device.port is not None
        arguments += device.arguments(device.port)
    return arguments


def _boot(hardware: Hardware) -> list[str]:
    arguments = ["-boot", "menu=off,reboot-timeout=-1"]
    if hardware.kernel is not None:
        arguments += ["-kernel", str(hardware.kernel)]
        if hardware.initrd is not None:
            arguments += ["-initrd", str(hardware.initrd)]
        arguments += ["-append", " ".join(kernel_parameters(hardware))]
    elif hardware.initrd is not None:
        raise IolaneError("an initrd without a kernel", remedy="name the kernel too")
    if hardware.reboot_stops:
        arguments += ["-action", "reboot=shutdown"]
    if hardware.paused or hardware.incoming:  # who comes does not go on by itself
        arguments.append("-S")
    if hardware.incoming:
        arguments += ["-incoming", "defer"]
    return arguments
