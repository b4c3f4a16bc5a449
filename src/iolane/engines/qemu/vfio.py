"""Physical functions that QEMU opens itself, through VFIO, and what a machine with one must not do.

The IOMMU holds the guest's memory where it is: whatever would give pages back to the host and take others for
them (a balloon, free page reporting, hot-unplugged memory) would leave the function with the old ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iolane.carriers.vfio.locked_memory import locked_memory
from iolane.engines.qemu.qmp import Qmp
from iolane.errors import IolaneError
from iolane.model.pci import PcieId

DRIVER = "vfio-pci"
MARGIN = 64 << 20
"""Bytes that are mapped for DMA beside the guest's memory: firmware, option ROMs."""
DISCARDING = re.compile(r"(virtio-balloon|virtio-mem|virtio-pmem|free-page-reporting|pc-dimm)[\w-]*")
"""Words of QEMU's command line that take pages from the guest while it runs."""


@dataclass(frozen=True)
class VfioPciDevice:
    """A function of this host, which vfio-pci holds."""

    id: str
    address: PcieId
    bootindex: int | None = None
    port: str | None = None
    """The root port it sits behind; by default the first free one."""
    rom: bool = True
    """Whether the firmware sees the function's option ROM."""

    def check(self, root: Path = Path("/")) -> None:
        """Refuse a function that vfio-pci does not hold. Raises IolaneError."""
        function = root / "sys/bus/pci/devices" / str(self.address)
        if not function.exists():
            raise IolaneError(f"there is no PCI function {self.address}", remedy="see `iolane host`")
        driver = function / "driver"
        name = driver.resolve().name if driver.exists() else "no driver"
        if name != DRIVER:
            raise IolaneError(
                f"{self.address} is held by {name}, not by {DRIVER}",
                remedy=f"iolane host take {self.address}",
            )

    def properties(self, port: str | None) -> dict[str, object]:
        """The properties of QEMU's vfio-pci."""
        properties: dict[str, object] = {"driver": DRIVER, "id": self.id, "host": str(self.address)}
        if port is not None:
            properties["bus"] = port
        if self.bootindex is not None:
            properties["bootindex"] = self.bootindex
        if not self.rom:
            properties["rombar"] = 0
        return properties

    def arguments(self, port: str | None) -> list[str]:
        """Of the command line."""
        return ["-device", json.dumps(self.properties(port))]

    def plug(self, qmp: Qmp, port: str) -> None:
        """Make it in a machine that runs: QEMU then maps the guest's whole memory for its DMA."""
        qmp.execute("device_add", 120.0, **self.properties(port))

    def forget(self, qmp: Qmp) -> None:
        """The device is gone; nothing was made beside it."""

    @property
    def remedy(self) -> str:
        """What to look at when QEMU refuses it."""
        return f"`iolane host {self.address}` says whether it can be passed through"


def moves_along(qmp: Qmp, address: PcieId) -> bool:
    """Whether QEMU moves a function that it has with the machine, as it does where the function's driver in
    the host's kernel reports VFIO_DEVICE_FEATURE_MIGRATION. For every other it objects to migration, by name.
    """
    reasons = qmp.execute("query-migrate").get("blocked-reasons", [])
    return not any("VFIO" in reason or str(address) in reason for reason in reasons)


def refuse_discarding(arguments: Sequence[str]) -> None:
    """Refuse QEMU arguments that would take pages away under the IOMMU. Raises IolaneError."""
    for argument in arguments:
        if found := DISCARDING.search(argument):
            raise IolaneError(
                f"'{found[0]}' is refused in a machine with a passed-through function: its IOMMU maps would "
                "keep pages that the guest has given back",
                remedy="leave it out, or take the function out of the machine",
            )


def refuse_without_locked_memory(memory: int) -> None:
    """Refuse a guest of `memory` bytes that this process, and so QEMU, may not lock. Raises IolaneError."""
    state = locked_memory()
    if not state.allows(memory + MARGIN):
        raise IolaneError(
            f"QEMU must lock the guest's memory: {state.explain(memory + MARGIN)}",
            remedy=state.remedy(memory + MARGIN),
        )
