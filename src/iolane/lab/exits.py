"""How often a guest's processors were left, by KVM's own counts in debugfs, which the lab has mounted."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from iolane.errors import IolaneError

KVM = Path("/sys/kernel/debug/kvm")


class Exits(NamedTuple):
    """Counts since the machine was made."""

    all: int
    io: int
    """Port I/O: in iolane's guests that is the serial port by which the agent is told what to do."""
    halts: int
    """HLT: the guest waited for an interrupt."""
    mmio: int
    """Accesses to registers that QEMU had to handle."""

    @property
    def of_devices(self) -> int:
        """All but those of the serial port."""
        return self.all - self.io

    def since(self, before: Exits) -> Exits:
        """What was added."""
        return Exits(*(now - then for now, then in zip(self, before, strict=True)))


def read_exits(pid: int, root: Path = KVM) -> Exits:
    """Those of the machine that process `pid` runs. Raises IolaneError: KVM does not tell."""
    found = sorted(root.glob(f"{pid}-*"))
    if len(found) != 1:
        raise IolaneError(
            f"KVM tells nothing of a machine of process {pid}", remedy="mount debugfs at /sys/kernel/debug"
        )
    names = ("exits", "io_exits", "halt_exits", "mmio_exits")
    return Exits(*(int((found[0] / name).read_text()) for name in names))
