"""What a machine on the engine `qemu` is to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iolane.engines.qemu.command_line import Accelerator, Board, MachineDevice
from iolane.engines.qemu.initramfs import InitramfsContent
from iolane.engines.qemu.kernel import Flavour, GuestKernel
from iolane.engines.qemu.provision import Qemu


@dataclass(frozen=True)
class MachineConfig:
    """What a machine is to be. The defaults boot Debian's cloud kernel with busybox and the guest agent."""

    name: str = "iolane"
    memory_mib: int = 512
    cpus: int = 1
    devices: Sequence[MachineDevice] = ()
    kernel: GuestKernel | Path | Flavour | None = Flavour.CLOUD
    """A Debian flavour, an own image, or None: the firmware boots from a device (see `bootindex`)."""
    initrd: Path | None = None
    """An own initrd; by default one is made, with the agent as its /init."""
    content: InitramfsContent = field(default_factory=InitramfsContent)
    """What the initramfs made here holds beside busybox and the agent."""
    append: str = ""
    agent: bool | None = None
    """Whether a guest agent will answer; by default, whether the initramfs is made here."""
    shell: bool = False
    """A shell on the console."""
    iommu: bool = False
    """Put an Intel IOMMU before the devices, in caching mode, and have the kernel use it."""
    board: Board = field(default_factory=Board)
    ports: int = 8
    accelerator: Accelerator | None = None
    """By default KVM where it runs Linux, else TCG."""
    cpu_model: str | None = None
    quick: bool = True
    """Kernel parameters for a quick boot."""
    reboot_stops: bool = True
    """A guest that restarts by itself (a panic does) ends the machine. `reset` works either way."""
    boot_timeout: float = 120.0
    console_log: Path | None = None
    qemu: Qemu | None = None
    extra_arguments: Sequence[str] = ()
    paused: bool = False
    incoming: bool = False
    """Wait for the guest of another machine with the same hardware, see `migrate_to`."""

    @property
    def has_agent(self) -> bool:
        """Whether a guest agent is expected."""
        if self.agent is not None:
            return self.agent
        return self.kernel is not None and self.initrd is None
