"""The entropy device as a PCI function."""

from __future__ import annotations

from pathlib import Path

from iolane.devices.virtio.rng.device import Rng
from iolane.model.pci import Presentation
from iolane.model.virtio.pci import VirtioPci


class RngFunction(VirtioPci):
    """An entropy device on PCI; Linux's virtio-rng makes it /dev/hwrng.

    Args:
        source: a file to read from, /dev/hwrng for instance; by default the kernel's generator.
        rate: bytes a second at most; 0 for no limit.
    """

    def __init__(
        self,
        source: Path | None = None,
        *,
        rate: int = 0,
        presentation: Presentation | str = Presentation.AUTO,
        name: str | None = None,
    ) -> None:
        super().__init__(Rng(source, rate=rate), presentation=presentation, name=name or "rng")
